"""The memory budget in the real app: refusals, splits, out-of-memory, models that take turns, /vram and the metrics."""

import asyncio
import random
import re
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from encoders.adapters.fake import FakeBlueprint, FakeEncoder, FakeMemory, fake_spec
from encoders.contract.cost import Cost
from encoders.contract.encoder import Encoder
from encoders.contract.values import ImageSize, Outputs
from encoders.memory.prediction import MIB
from service.engine.backend import Backend
from service.errors import ModelDoesNotFit
from service.http.app import create_app
from service.settings import Settings
from tests.support.serving import PNG, Gate, assert_problem, client_of, image_bytes, noise, serving

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()
ONE = FakeEncoder().blueprint.cost(ImageSize(32, 32), Outputs(pooled=True), device="cpu").requested(1)
"""Bytes of a forward of one native image."""


def metric(text: str, series: str) -> float:
    found = re.search(rf"^visiontower_{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, series
    return float(found[1])


async def embed(client: httpx.AsyncClient, query: str = "", content: bytes = PICTURE) -> httpx.Response:
    return await client.post(f"/embed?output=pooled&{query}", content=content, headers=PNG)


def turns(
    memory: FakeMemory, weights: dict[str, int], *, clock: Callable[[], float] = time.monotonic, **settings: Any
) -> tuple[list[str], FastAPI]:
    """An app whose encoders take their weights of `memory`, and give them back when nobody holds them any more.

    Gives the models as they are loaded, too.
    """
    loads: list[str] = []
    specs = {model: fake_spec(model, weights_bytes=size) for model, size in weights.items()}

    def load(model: str) -> Encoder:
        loads.append(model)
        memory.take(weights[model], by=model)
        encoder = FakeEncoder(specs[model], memory=memory)
        weakref.finalize(encoder, memory.give, weights[model])
        return encoder

    backend = Backend(load=load, blueprint=lambda model, dtype: FakeBlueprint(specs[model]), memory=lambda: memory)
    return loads, create_app(Settings(model=tuple(weights), **settings), backend=backend, clock=clock)


async def test_an_image_that_cannot_fit_alone_is_refused_before_it_is_queued() -> None:
    memory = FakeMemory(100 * ONE)
    encoder = FakeEncoder(memory=memory)
    async with serving(encoder, memory=memory, vram_budget=10 * ONE) as client:
        encoder.batches.clear()
        refused = await embed(client, "resolution=512")
        fits = await embed(client, "resolution=96")
        metrics = (await client.get("/metrics")).text
    problem = assert_problem(refused, 413, "image-does-not-fit")
    assert problem["predicted_bytes"] > problem["budget_bytes"] == 10 * ONE
    assert problem["largest_resolution"] == [96, 96]
    assert "96x96" in problem["detail"]
    assert fits.status_code == 200
    assert encoder.batches == [1]
    assert metric(metrics, 'admission_total{decision="refused"}') == 1
    assert metric(metrics, 'rejected_total{reason="image-does-not-fit"}') == 1


async def test_the_largest_resolution_has_the_request_s_proportions() -> None:
    async with serving(memory=FakeMemory(100 * ONE), vram_budget=10 * ONE) as client:
        problem = assert_problem(await embed(client, "resolution=256x512"), 413, "image-does-not-fit")
    height, width = problem["largest_resolution"]
    assert (height, width) == (64, 128)


async def test_a_batch_that_would_not_fit_is_split() -> None:
    memory, gate = FakeMemory(100 * ONE), Gate()
    encoder = FakeEncoder(memory=memory, before=gate)
    # However long the gate is shut, the forward behind it is not slow.
    async with serving(encoder, memory=memory, vram_budget=int(3.5 * ONE), max_forward_s=1e9) as client:
        encoder.batches.clear()
        gate.close()
        first = asyncio.create_task(embed(client))
        await gate.someone_inside()
        rest = asyncio.create_task(client.post("/embed?output=pooled", files=[("image", PICTURE)] * 8))
        while metric((await client.get("/metrics")).text, 'queue_images{model="fake:vit"}') < 8:
            await asyncio.sleep(0)
        gate.is_open.set()
        assert (await first).status_code == (await rest).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert encoder.batches == [1, 3, 3, 2]
    assert memory.failures == 0
    assert metric(metrics, 'admission_total{decision="split"}') == 2
    assert metric(metrics, 'admission_total{decision="whole"}') == 2


async def test_what_was_not_foreseen_is_halved_answered_and_remembered() -> None:
    """The encoder takes 1.6 times what its blueprint says."""
    memory, gate = FakeMemory(100 * ONE), Gate()
    encoder = FakeEncoder(memory=memory, before=gate, true_cost=1.6)
    async with serving(encoder, memory=memory, vram_budget=8 * ONE) as client:
        for _ in range(3):
            gate.close()
            first = asyncio.create_task(embed(client))
            await gate.someone_inside()
            rest = asyncio.create_task(client.post("/embed?output=pooled", files=[("image", PICTURE)] * 16))
            while metric((await client.get("/metrics")).text, 'queue_images{model="fake:vit"}') < 16:
                await asyncio.sleep(0)
            gate.is_open.set()
            assert (await first).status_code == (await rest).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert (await client.get("/health/ready")).status_code == 200
    assert memory.failures == 0, "the first forward of one image told the ratio"
    assert metric(metrics, 'vram_prediction_ratio{model="fake:vit"}') == pytest.approx(1.6, rel=1e-3)
    assert max(encoder.batches) == 5, "8 / 1.6"


async def test_an_out_of_memory_hurts_nobody_but_the_image_that_is_too_large() -> None:
    """Somebody else takes the card while the server runs."""
    memory = FakeMemory(100 * ONE)
    encoder = FakeEncoder(memory=memory)
    async with serving(encoder, memory=memory, vram_budget=50 * ONE) as client:
        memory.total = 50 * ONE
        memory.take(48 * ONE, by="another process")
        both = await client.post("/embed?output=pooled", files=[("image", PICTURE)] * 4)
        assert both.status_code == 200
        assert_problem(await embed(client, "resolution=64"), 507, "out-of-memory")
        metrics = (await client.get("/metrics")).text
        memory.give(48 * ONE)
        assert (await embed(client, "resolution=64")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
    assert metric(metrics, 'out_of_memory_total{model="fake:vit"}') >= 1


async def test_adversarial_traffic_under_a_tight_budget_is_all_answered_without_one_out_of_memory() -> None:
    """Three models, eight resolutions, three kinds of output, heat maps, texts; a budget for one large image."""
    weights = {"fake:a": 3 * MIB, "fake:b": 5 * MIB, "fake:c": MIB}
    memory = FakeMemory(64 * MIB)
    loads, app = turns(memory, weights, vram_budget=9 * MIB + 3 * MIB, queue_images=1000, queue_plans=1000)
    rng = random.Random(7)

    async def one(client: httpx.AsyncClient, number: int) -> httpx.Response:
        model, side = rng.choice(list(weights)), rng.choice([8, 16, 32, 64, 96, 128, 192, 512])
        query: dict[str, Any] = {"model": model, "resolution": f"{side}x{rng.choice([side, 8 * max(1, side // 16)])}"}
        files = [("image", noise(number + n)) for n in range(rng.choice([1, 1, 3, 9]))]
        if number % 5 == 0:
            texts = {"text": ["a", "b", str(number)]}
            return await client.post("/similarity", params={**query, "heatmap": True}, files=files, data=texts)
        kind: dict[str, Any] = rng.choice([{"output": "pooled"}, {"output": "both"}, {"layer": 1}, {"project": True}])
        return await client.post("/embed", params={**query, **kind}, files=files)

    async with client_of(app) as client:
        answers = await asyncio.gather(*(one(client, number) for number in range(200)))
        metrics = (await client.get("/metrics")).text
        assert (await client.get("/health/ready")).status_code == 200
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 413}
    assert memory.failures == 0
    assert loads == list(weights)
    refused = sum(answer.status_code == 413 for answer in answers)
    assert metric(metrics, 'admission_total{decision="refused"}') == refused > 0
    assert metric(metrics, 'admission_total{decision="split"}') > 0
    assert all(metric(metrics, f'queue_images{{model="{model}"}}') == 0 for model in weights)


async def test_a_model_that_does_not_fit_beside_the_others_is_refused_at_start() -> None:
    _, app = turns(FakeMemory(100 * MIB), {"fake:a": 60 * MIB, "fake:b": 60 * MIB}, vram_budget=100 * MIB)
    with pytest.raises(ModelDoesNotFit, match="fake:b needs"):
        async with app.router.lifespan_context(app):
            pass


async def test_models_that_do_not_fit_together_take_turns() -> None:
    now = [0.0]
    memory = FakeMemory(100 * MIB)
    loads, app = turns(
        memory,
        {"fake:a": 60 * MIB, "fake:b": 60 * MIB},
        clock=lambda: now[0],
        vram_budget=100 * MIB,
        when_full="evict",
    )
    async with client_of(app) as client:
        states = {m["id"]: m["state"] for m in (await client.get("/models")).json()["data"]}
        assert states == {"fake:a": "ready", "fake:b": "not loaded"}
        now[0] += 100
        together = await asyncio.gather(*(embed(client, "model=fake:b") for _ in range(5)))
        assert {answer.status_code for answer in together} == {200}
        assert memory.allocated == 60 * MIB
        states = {m["id"]: m["state"] for m in (await client.get("/models")).json()["data"]}
        assert states == {"fake:a": "not loaded", "fake:b": "ready"}
        now[0] += 100
        assert (await embed(client, "model=fake:a")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
    assert loads == ["fake:a", "fake:b", "fake:a"]
    assert memory.failures == 0


async def test_two_models_that_are_both_wanted_do_not_push_each_other_out_with_every_request() -> None:
    now = [0.0]
    loads, app = turns(
        FakeMemory(100 * MIB),
        {"fake:a": 60 * MIB, "fake:b": 60 * MIB},
        clock=lambda: now[0],
        vram_budget=100 * MIB,
        when_full="evict",
        evict_idle_s=30,
    )
    async with client_of(app) as client:
        for _ in range(40):
            now[0] += 1
            assert (await embed(client, "model=fake:a")).status_code == 200
            refused = await embed(client, "model=fake:b")
            assert_problem(refused, 503, "model-waits-for-room")
            assert refused.headers["retry-after"] == "30"
        now[0] += 30
        assert (await embed(client, "model=fake:b")).status_code == 200
    assert loads == ["fake:a", "fake:b"]


async def test_the_least_recently_used_goes_first_and_one_in_use_stays() -> None:
    now = [0.0]
    memory = FakeMemory(100 * MIB)
    sizes = {"fake:a": 30 * MIB, "fake:b": 30 * MIB, "fake:c": 30 * MIB, "fake:d": 30 * MIB}
    loads, app = turns(memory, sizes, clock=lambda: now[0], vram_budget=100 * MIB, when_full="evict", evict_idle_s=10)
    async with client_of(app) as client:
        for model in ("fake:b", "fake:a", "fake:c"):
            now[0] += 20
            assert (await embed(client, f"model={model}")).status_code == 200
        now[0] += 20
        assert (await embed(client, "model=fake:d")).status_code == 200
        states = {m["id"]: m["state"] for m in (await client.get("/models")).json()["data"]}
    assert [model for model, state in states.items() if state == "not loaded"] == ["fake:b"]
    assert loads == ["fake:a", "fake:b", "fake:c", "fake:d"]


async def test_a_large_image_makes_idle_models_leave_if_that_is_the_setting() -> None:
    now = [0.0]
    memory = FakeMemory(100 * MIB)
    _, app = turns(
        memory,
        {"fake:a": 45 * MIB, "fake:b": 45 * MIB},
        clock=lambda: now[0],
        vram_budget=100 * MIB,
        when_full="evict",
    )
    async with client_of(app) as client:
        now[0] += 100
        assert (await embed(client, "model=fake:a&resolution=512")).status_code == 200
        states = {m["id"]: m["state"] for m in (await client.get("/models")).json()["data"]}
    assert states == {"fake:a": "ready", "fake:b": "not loaded"}
    assert memory.failures == 0


async def test_vram_says_what_a_forward_would_take_and_adds_up() -> None:
    encoder = FakeEncoder(fake_spec(weights_bytes=1000))
    async with serving(encoder, memory=FakeMemory(2**30), vram_budget=10_000_000) as client:
        encoder.batches.clear()
        row = (await client.get("/vram?resolution=64&batch=8")).json()
        table = (await client.get("/vram?resolution=64,96x32&batch=1,8&output=pooled")).json()
    assert row["resolution"] == [64, 64]
    assert row["batch"] == 8
    parts = ("weights_bytes", "io_bytes", "activation_bytes", "overhead_bytes")
    assert row["total_bytes"] == sum(row[part] for part in parts)
    assert row["weights_bytes"] == 1000
    assert row["tokens"] == 8 * 64
    assert row["max_batch"] >= 8
    assert row["max_resolution"] == [136, 136], "8 images of 136 x 136 x 64 bytes fit 10 MB, of 144 x 144 not"
    assert row["budget_bytes"] == table["budget_bytes"] == 10_000_000
    assert [(r["resolution"], r["batch"]) for r in table["data"]] == [
        ([64, 64], 1), ([64, 64], 8), ([96, 32], 1), ([96, 32], 8),
    ]  # fmt: skip
    assert encoder.batches == [], "nothing was run"


@pytest.mark.parametrize(
    ("query", "status", "slug"),
    [
        ("model=nobody", 404, "unknown-model"),
        ("resolution=33", 422, "unsupported-resolution"),
        ("resolution=x", 422, "invalid-option"),
        ("batch=0", 422, "invalid-option"),
        ("batch=", 422, "invalid-option"),
        ("dtype=int4", 422, "invalid-option"),
        ("dtype=float32,float16,bfloat16,float32", 422, "invalid-option"),
        (f"resolution={','.join(['32'] * 17)}", 422, "invalid-option"),
        (f"batch={','.join(['1'] * 17)}", 422, "invalid-option"),
        ("layer=9", 422, "layer-not-found"),
        ("nonsense=1", 422, "invalid-option"),
    ],
)
async def test_what_vram_cannot_answer_is_a_problem(query: str, status: int, slug: str) -> None:
    async with serving() as client:
        assert_problem(await client.get(f"/vram?{query}"), status, slug)


async def test_memory_is_on_the_metrics_page() -> None:
    memory = FakeMemory(1000 * ONE, device="cuda:0")
    encoder = FakeEncoder(fake_spec(weights_bytes=ONE), memory=memory)
    async with serving(encoder, memory=memory, vram_share=0.5) as client:
        assert (await embed(client)).status_code == 200
        text = (await client.get("/metrics")).text
    kinds = {kind: metric(text, f'vram_bytes{{device="cuda:0",kind="{kind}"}}') for kind in (
        "weights", "activations_predicted", "activations_peak", "allocated", "reserved", "budget", "free", "total",
    )}  # fmt: skip
    assert kinds["weights"] == kinds["activations_predicted"] == kinds["activations_peak"] == ONE
    assert kinds["budget"] == 500 * ONE
    assert kinds["total"] == 1000 * ONE
    assert metric(text, 'vram_prediction_ratio{model="fake:vit"}') == 1.0


async def test_a_new_shape_is_planned_once_for_all_who_wait_for_it() -> None:
    asked: list[ImageSize] = []

    class Counted(FakeBlueprint):
        def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
            asked.append(size)
            return super().cost(size, outputs, device=device)

    backend = Backend(
        load=lambda model: FakeEncoder(),
        blueprint=lambda model, dtype: Counted(),
        memory=lambda: FakeMemory(2**30),
    )
    async with client_of(create_app(Settings(model=("fake:vit",)), backend=backend)) as client:
        answers = await asyncio.gather(*(embed(client, "resolution=64") for _ in range(20)))
        answers.append(await embed(client, "resolution=64"))
    assert {answer.status_code for answer in answers} == {200}
    assert asked.count(ImageSize(64, 64)) == 1


async def test_who_leaves_while_a_shape_is_planned_does_not_spoil_it_for_the_others() -> None:
    planning, finish = threading.Event(), threading.Event()

    class Held(FakeBlueprint):
        def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
            if size == ImageSize(64, 64):
                planning.set()
                assert finish.wait(30)
            return super().cost(size, outputs, device=device)

    backend = Backend(
        load=lambda model: FakeEncoder(),
        blueprint=lambda model, dtype: Held(),
        memory=lambda: FakeMemory(2**30),
    )
    async with client_of(create_app(Settings(model=("fake:vit",)), backend=backend)) as client:
        first = asyncio.create_task(embed(client, "resolution=64"))
        assert await asyncio.to_thread(planning.wait, 30)
        second = asyncio.create_task(embed(client, "resolution=64"))
        known = await embed(client)
        assert known.status_code == 200, "others do not wait for the plan"
        first.cancel()
        finish.set()
        assert (await second).status_code == 200


async def test_new_resolutions_of_one_address_leave_places_for_another() -> None:
    planning, finish = threading.Event(), threading.Event()

    class Held(FakeBlueprint):
        def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
            if size != ImageSize(32, 32):
                planning.set()
                assert finish.wait(30)
            return super().cost(size, outputs, device=device)

    backend = Backend(
        load=lambda model: FakeEncoder(),
        blueprint=lambda model, dtype: Held(),
        memory=lambda: FakeMemory(2**30),
    )
    app = create_app(Settings(model=("fake:vit",), queue_plans=4), backend=backend)
    async with client_of(app) as client:
        elsewhere = httpx.ASGITransport(app, client=("10.0.0.7", 1))
        async with httpx.AsyncClient(transport=elsewhere, base_url="http://service") as other:
            waiting = [asyncio.create_task(embed(client, f"resolution={side}")) for side in (64, 72)]
            assert await asyncio.to_thread(planning.wait, 30)
            refused = await embed(client, "resolution=80")
            known = await embed(client)
            waiting.append(asyncio.create_task(embed(other, "resolution=88")))
            table = asyncio.create_task(client.get("/vram?resolution=96,104"))
            while app.state.engine.admission.inside("images") < 3:
                await asyncio.sleep(0)
            finish.set()
            answers = await asyncio.gather(*waiting, table)
    problem = assert_problem(refused, 503, "overloaded")
    assert (problem["waiting"], problem["limit"]) == (2, 2)
    assert refused.headers["retry-after"] == "1"
    assert known.status_code == 200, "who asks for what is known does not wait"
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200]
