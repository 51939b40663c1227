"""Models that fail to load: remembered, told, and not tried again with every request."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from encoders.adapters.fake import FakeBlueprint, FakeEncoder, FakeMemory, fake_spec
from encoders.contract.encoder import Encoder
from encoders.contract.errors import WeightsError
from encoders.memory.prediction import MIB
from service.engine.backend import Backend
from service.http.app import create_app
from service.settings import Settings
from tests.support.serving import PNG, assert_problem, client_of, image_bytes

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()


class Shelf:
    """Two encoders of which one fits, and a second one whose weights can be broken."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.broken = True
        self.now = 0.0

    def app(self, **settings: Any) -> FastAPI:
        specs = {model: fake_spec(model, weights_bytes=60 * MIB) for model in ("fake:good", "fake:bad")}

        def load(model: str) -> Encoder:
            self.loads.append(model)
            if model == "fake:bad" and self.broken:
                raise WeightsError("missing: visual.proj")
            return FakeEncoder(specs[model])

        backend = Backend(
            load=load, blueprint=lambda model, dtype: FakeBlueprint(specs[model]), memory=lambda: FakeMemory(100 * MIB)
        )
        given = {"vram_budget": 100 * MIB, "when_full": "evict", "evict_idle_s": 10.0, **settings}
        return create_app(Settings(model=tuple(specs), **given), backend=backend, clock=lambda: self.now)


async def embed(client: httpx.AsyncClient, model: str) -> httpx.Response:
    return await client.post(f"/embed?output=pooled&model={model}", content=PICTURE, headers=PNG)


async def states(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in (await client.get("/models")).json()["data"]}


async def test_a_model_that_failed_to_load_is_not_tried_again_with_every_request() -> None:
    shelf = Shelf()
    async with client_of(shelf.app()) as client:
        shelf.now = 100
        assert_problem(await embed(client, "fake:bad"), 500, "weights")
        for _ in range(20):
            refused = await embed(client, "fake:bad")
            assert_problem(refused, 503, "model-failed")
        assert refused.headers["retry-after"] == "30"
        assert shelf.loads == ["fake:good", "fake:bad"]
        told = (await states(client))["fake:bad"]
        ready = await client.get("/health/ready")
    assert (told["state"], told["reason"], told["retry_in_s"]) == ("failed", "missing: visual.proj", 30.0)
    assert ready.status_code == 200, "the others serve"
    assert ready.json()["models"]["fake:bad"] == {k: told[k] for k in ("state", "reason", "retry_in_s")}


async def test_a_retry_evicts_nobody_who_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """The first try may evict, as any load may. What it threw out comes back, and stays."""
    shelf = Shelf()
    async with client_of(shelf.app()) as client:
        shelf.now = 100
        assert_problem(await embed(client, "fake:bad"), 500, "weights")
        caplog.clear()
        for _ in range(10):
            assert (await embed(client, "fake:good")).status_code == 200
            shelf.now += 600
            refused = await embed(client, "fake:bad")
            assert_problem(refused, 503, "model-waits-for-room")
            assert refused.headers["retry-after"] == "360"
            assert (await states(client))["fake:good"]["state"] == "ready"
        assert shelf.loads == ["fake:good", "fake:bad", "fake:good"]
        assert (await states(client))["fake:bad"]["retry_in_s"] == 0
    assert "could not be loaded" not in caplog.text, "nothing was tried"


async def test_a_model_that_was_mended_takes_the_place_of_one_that_nobody_has_asked_for_in_long() -> None:
    shelf = Shelf()
    async with client_of(shelf.app()) as client:
        shelf.now = 100
        assert_problem(await embed(client, "fake:bad"), 500, "weights")
        assert (await embed(client, "fake:good")).status_code == 200
        shelf.broken = False
        shelf.now += 960
        assert (await embed(client, "fake:bad")).status_code == 200
        assert (await states(client))["fake:good"]["state"] == "not loaded"


async def test_an_image_that_is_too_large_does_not_spoil_the_load_of_its_model() -> None:
    """It gets its own error, and the model is there for the next one."""
    shelf = Shelf()
    shelf.broken = False
    async with client_of(shelf.app(vram_budget=61 * MIB)) as client:
        shelf.now = 100
        large = "/embed?output=pooled&model=fake:bad&resolution=512"
        refused = await client.post(large, content=PICTURE, headers=PNG)
        answered = await embed(client, "fake:bad")
    assert assert_problem(refused, 413, "image-does-not-fit")["largest_resolution"] is not None
    assert answered.status_code == 200
    assert shelf.loads == ["fake:good", "fake:bad"]


async def test_the_pause_grows_with_each_failure_and_a_load_that_works_ends_it() -> None:
    shelf = Shelf()
    async with client_of(shelf.app(vram_budget=100 * MIB)) as client:
        shelf.now = 100
        pauses = []
        for _ in range(8):
            assert_problem(await embed(client, "fake:bad"), 500, "weights")
            pauses.append((await states(client))["fake:bad"]["retry_in_s"])
            shelf.now += pauses[-1]
        assert pauses == [30, 60, 120, 240, 480, 960, 960, 960]
        shelf.broken = False
        assert (await embed(client, "fake:bad")).status_code == 200
        told = (await states(client))["fake:bad"]
    assert told["state"] == "ready"
    assert "reason" not in told


async def test_an_encoder_that_calls_itself_otherwise_is_not_taken() -> None:
    backend = Backend(
        load=lambda model: FakeEncoder(fake_spec("fake:other")),
        blueprint=lambda model, dtype: FakeBlueprint(fake_spec(model)),
        memory=lambda: FakeMemory(2**30),
    )
    app = create_app(Settings(model=("fake:vit",)), backend=backend)
    raised: Callable[[], Any] = lambda: pytest.raises(Exception, match="calls itself 'fake:other'")  # noqa: E731
    with raised():
        async with app.router.lifespan_context(app):
            pass
