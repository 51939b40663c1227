"""Start, overload, deadlines, departed clients, failures, shutdown: the real app with fakes that wait at a gate."""

import asyncio
import json
import logging
import threading
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, WeightsError
from service.http.app import create_app
from service.settings import Settings
from tests.support.serving import PNG, Gate, app_of, assert_problem, backend_of, client_of, image_bytes, serving
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()


def post(client: httpx.AsyncClient, query: str = "output=pooled") -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post(f"/embed?{query}", content=PICTURE, headers=PNG))


def inside(app: FastAPI) -> int:
    count: int = app.state.engine.admission.inside("images")
    return count


async def test_when_the_queue_is_full_a_request_is_refused_at_once_and_unread() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate), queue_images=2, max_images=2)
    async with client_of(app) as client:
        gate.close()
        admitted = [post(client), post(client)]
        await until(lambda: inside(app) == 2)
        sent = False

        async def body() -> Any:
            nonlocal sent
            sent = True
            yield PICTURE

        refused = await client.post("/embed", content=body(), headers=PNG)
        assert not sent
        planned = await client.get("/vram")
        gate.is_open.set()
        assert [(await task).status_code for task in admitted] == [200, 200]
        assert (await client.post("/embed", content=PICTURE, headers=PNG)).status_code == 200
        metrics = (await client.get("/metrics")).text
    problem = assert_problem(refused, 503, "overloaded")
    assert planned.status_code == 200, "a plan takes no place in the queue"
    assert int(refused.headers["retry-after"]) >= 1
    assert problem["retry_after_s"] == int(refused.headers["retry-after"])
    assert 'visiontower_rejected_total{reason="overloaded"} 1.0' in metrics


async def test_a_request_with_more_images_than_there_is_room_is_refused_whole() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate), queue_images=3, max_images=3)
    async with client_of(app) as client:
        gate.close()
        admitted = post(client)
        await until(lambda: inside(app) == 1)
        assert_problem(await client.post("/embed", files=[("image", PICTURE)] * 3), 503, "overloaded")
        assert inside(app) == 1
        gate.is_open.set()
        assert (await admitted).status_code == 200


async def test_texts_are_admitted_within_their_own_limit() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate), queue_texts=3, max_texts=3)
    async with client_of(app) as client:
        gate.close()
        first = asyncio.create_task(client.post("/similarity?text=a&text=b", content=PICTURE, headers=PNG))
        await until(lambda: inside(app) == 1)
        refused = await client.post("/similarity?text=a&text=b", content=PICTURE, headers=PNG)
        gate.is_open.set()
        assert (await first).status_code == 200
    assert "texts" in assert_problem(refused, 503, "overloaded")["detail"]


async def test_a_request_not_answered_in_time_is_a_504_and_frees_its_place() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate), request_timeout_s=0.05)
    async with client_of(app) as client:
        gate.close()
        assert_problem(await post(client), 504, "deadline-exceeded")
        assert inside(app) == 0
        gate.is_open.set()


async def test_a_departed_client_s_waiting_image_is_not_run() -> None:
    """Over raw ASGI: one image is held inside the model, the second one's client leaves while it waits."""
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    app = app_of(encoder)
    async with client_of(app) as client:
        encoder.batches.clear()
        gate.close()
        first = post(client)
        await gate.someone_inside()
        leave = asyncio.Event()
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": PICTURE, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            """To nobody."""

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/embed",
            "raw_path": b"/embed",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("service", 80),
        }
        departing = asyncio.create_task(app(scope, receive, send))
        threads = app.state.engine.threads
        await until(lambda: threads.waiting("fake:vit")[0] == 1)
        leave.set()
        await departing
        assert threads.waiting("fake:vit")[0] == 0
        gate.is_open.set()
        assert (await first).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert encoder.batches == [1]
    assert 'visiontower_requests_total{protocol="native",route="/embed",status="499"} 1.0' in metrics


async def test_a_client_that_leaves_while_sending_is_not_an_error() -> None:
    app = app_of()
    async with client_of(app) as client:

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            """To nobody."""

        scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": []}
        await app(scope, receive, send)
        assert (await post(client)).status_code == 200


async def test_draining_finishes_what_was_admitted_and_takes_nothing_new() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate))
    async with client_of(app) as client:
        gate.close()
        admitted = post(client)
        await gate.someone_inside()
        draining = asyncio.create_task(app.state.engine.drain())
        await until(lambda: not app.state.engine.admission.is_open)
        assert_problem(await post(client), 503, "shutting-down")
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200
        gate.is_open.set()
        await draining
        assert (await admitted).status_code == 200


@pytest.mark.parametrize("images", [1, 2])
async def test_at_the_drain_deadline_the_rest_fails_by_name_and_whole(images: int) -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate), drain_timeout_s=0)
    async with client_of(app) as client:
        gate.close()
        admitted = asyncio.create_task(client.post("/embed", files=[("image", PICTURE)] * images))
        await gate.someone_inside()
        await app.state.engine.drain()
        assert_problem(await admitted, 503, "shutting-down")
        gate.is_open.set()


async def test_if_the_device_thread_ends_the_server_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)
    encoder = FakeEncoder()
    app = app_of(encoder)

    def end(batch: int) -> None:
        raise SystemExit

    async with client_of(app) as client:
        encoder.before = end
        assert_problem(await post(client), 503, "device-lost")
        assert_problem(await post(client), 503, "device-lost")
        ready = await client.get("/health/ready")
        model = await client.get("/models/fake:vit")
        assert app.state.engine.threads.is_lost
    assert ready.status_code == 503
    assert model.json()["state"] == "failing"


class Clock:
    """Of a test; it stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_failing_model_is_not_ready_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    sick, well, clock = FakeEncoder(fake_spec("fake:sick")), FakeEncoder(fake_spec("fake:well")), Clock()

    def fail(batch: int) -> None:
        raise EncoderFailed("out of memory, say")

    app = create_app(Settings(model=("fake:sick", "fake:well")), backend=backend_of(sick, well), clock=clock)
    async with client_of(app) as client:
        sick.before = fail
        assert_problem(await post(client), 500, "encoder-failed")
        assert (await post(client, "model=fake:well")).status_code == 200
        ready = await client.get("/health/ready")
        of_sick, of_well = [await client.get(f"/health/ready?model=fake:{name}") for name in ("sick", "well")]
        states = {entry["id"]: entry["state"] for entry in (await client.get("/models")).json()["data"]}
        metrics = (await client.get("/metrics")).text
        sick.before = lambda batch: None
        clock.now += 60
        recovered = await client.get("/health/ready?model=fake:sick")
        unknown = await client.get("/health/ready?model=fake:nobody")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready"), "the other one serves"
    assert {model: state["state"] for model, state in ready.json()["models"].items()} == states
    assert (of_sick.status_code, of_sick.json()["reason"]) == (503, "fake:sick fails")
    assert of_well.status_code == 200
    assert states == {"fake:sick": "failing", "fake:well": "ready"}
    assert 'visiontower_model_ready{model="fake:sick"} 0.0' in metrics
    assert recovered.status_code == 200
    assert_problem(unknown, 404, "unknown-model")


async def test_if_no_model_works_the_server_is_not_ready(caplog: pytest.LogCaptureFixture) -> None:
    encoder = FakeEncoder()

    def fail(batch: int) -> None:
        raise EncoderFailed("out of memory, say")

    async with serving(encoder) as client:
        encoder.before = fail
        assert_problem(await post(client), 500, "encoder-failed")
        ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, "fake:vit fails")


async def test_however_often_readiness_is_asked_a_failing_model_is_tried_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder, clock = FakeEncoder(), Clock()

    def fail(batch: int) -> None:
        raise EncoderFailed("out of memory, say")

    app = create_app(Settings(model=("fake:vit",)), backend=backend_of(encoder), clock=clock)
    async with client_of(app) as client:
        encoder.before = fail
        assert_problem(await post(client), 500, "encoder-failed")
        encoder.batches.clear()
        for _ in range(3):
            await asyncio.gather(*(client.get("/health/ready") for _ in range(8)))
        assert encoder.batches == [1]
        clock.now += 60
        await client.get("/health/ready")
        assert encoder.batches == [1, 1]


async def test_readiness_does_not_wait_for_a_device_that_is_at_work(caplog: pytest.LogCaptureFixture) -> None:
    sick, gate = FakeEncoder(), Gate()
    well = FakeEncoder(fake_spec("fake:well"), before=gate)

    def fail(batch: int) -> None:
        raise EncoderFailed("out of memory, say")

    async with serving(sick, well) as client:
        sick.before = fail
        assert_problem(await post(client), 500, "encoder-failed")
        gate.close()
        held = post(client, "model=fake:well")
        await gate.someone_inside()
        ready = await client.get("/health/ready?model=fake:vit")  # to try it the device would have to be free
        gate.is_open.set()
        assert (await held).status_code == 200
    assert ready.status_code == 503


async def test_a_forward_that_hangs_is_told_to_all_who_wait_and_to_readiness() -> None:
    gate, clock = Gate(), Clock()
    app = create_app(Settings(model=("fake:vit",)), backend=backend_of(FakeEncoder(before=gate)), clock=clock)
    async with client_of(app) as client:
        assert (await post(client)).status_code == 200
        engine = app.state.engine
        gate.close()
        first = post(client)
        await gate.someone_inside()
        second = post(client)
        await until(lambda: bool(engine.threads.waiting("fake:vit")[0]))
        for _ in range(6):
            clock.now += 1
            engine.watch()
        ready, model = await client.get("/health/ready"), await client.get("/models/fake:vit")
        answers = [await first, await second, await post(client)]
        assert engine.is_hung
        gate.is_open.set()
    for answer in answers:
        assert assert_problem(answer, 503, "device-hangs")["limit_s"] == 5
    assert ready.status_code == 503
    assert "a forward of 1 by fake:vit" in ready.json()["reason"]
    assert model.json()["state"] == "hangs"


async def test_one_bad_image_does_not_make_the_server_unready(caplog: pytest.LogCaptureFixture) -> None:
    encoder = FakeEncoder(after=lambda e: e)

    async with serving(encoder) as client:
        calls = iter([True])

        def fail_once(batch: int) -> None:
            if next(calls, False):
                raise EncoderFailed("this one")

        encoder.before = fail_once
        assert_problem(await post(client), 500, "encoder-failed")
        assert (await client.get("/health/ready")).status_code == 200


async def test_with_stay_a_forward_that_returns_late_makes_everything_as_before() -> None:
    gate, clock = Gate(), Clock()
    settings = Settings(model=("fake:vit",), on_hang="stay")
    app = create_app(settings, backend=backend_of(FakeEncoder(before=gate)), clock=clock)
    async with client_of(app) as client:
        assert (await post(client)).status_code == 200
        engine = app.state.engine
        gate.close()
        held = post(client)
        await gate.someone_inside()
        for _ in range(6):
            clock.now += 1
            engine.watch()
        assert_problem(await held, 503, "device-hangs")
        assert not engine.is_hung, "the process goes on"
        gate.is_open.set()
        await until(lambda: not engine.threads.at_work())
        engine.watch()
        assert (await client.get("/health/ready")).status_code == 200
        assert (await post(client)).status_code == 200


@pytest.mark.parametrize("error", [WeightsError("no such file"), OSError("disk"), EncoderFailed("first forward")])
async def test_an_encoder_that_does_not_load_is_fatal(error: Exception) -> None:
    def load(model: str) -> Encoder:
        raise error

    app = create_app(Settings(model=("fake:vit",)), backend=backend_of(load=load))
    with pytest.raises(type(error)):
        async with app.router.lifespan_context(app):
            pass


async def test_an_encoder_is_loaded_on_a_thread_that_ends_with_it() -> None:
    """As long as it lived, OpenMP would count the team of threads it had against the lanes'."""
    threads: list[threading.Thread] = []

    def load(model: str) -> Encoder:
        threads.append(threading.current_thread())
        return FakeEncoder()

    async with client_of(create_app(Settings(model=("fake:vit",)), backend=backend_of(load=load))) as client:
        assert (await client.get("/health/ready")).status_code == 200
        [thread] = threads
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()


async def test_an_encoder_that_gives_nan_at_its_first_forward_is_fatal() -> None:
    def load(model: str) -> Encoder:
        return FakeEncoder(after=lambda e: replace(e, pooled=np.full((1, 6), np.nan, np.float32)))

    app = create_app(Settings(model=("fake:vit",)), backend=backend_of(load=load))
    with pytest.raises(EncoderFailed):
        async with app.router.lifespan_context(app):
            pass


async def test_concurrent_requests_share_batches_and_get_their_own_answers() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    app = app_of(encoder, max_batch=8)
    colours = [(10 * n, 5 * n, 250 - 10 * n) for n in range(20)]
    async with client_of(app) as client:
        pictures = [image_bytes(colour=colour) for colour in colours]
        alone = [await client.post("/embed?output=pooled", content=picture, headers=PNG) for picture in pictures]
        encoder.batches.clear()
        gate.close()
        tasks = [
            asyncio.create_task(client.post("/embed?output=pooled", content=picture, headers=PNG))
            for picture in pictures
        ]
        await gate.someone_inside()
        first = encoder.batches[0]
        await until(lambda: app.state.engine.threads.waiting("fake:vit")[0] == 20 - first)
        gate.is_open.set()
        together = [await task for task in tasks]
    assert len(encoder.batches) <= 4
    assert max(encoder.batches) == 8
    for one, other in zip(alone, together, strict=True):
        values = [json.loads(r.content)["data"][0]["pooled"]["data"] for r in (one, other)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
