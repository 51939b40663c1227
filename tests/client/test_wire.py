"""What is tried again, how often and when; and what an answer's error becomes."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.errors import EncoderFailed
from service.http.problems import TYPES
from tests.client.support import client, client_of
from tests.support.serving import Gate, app_of, noise
from visiontower_client import (
    AsyncClient,
    BadImage,
    InvalidRequest,
    LimitExceeded,
    NotAllowed,
    Overloaded,
    ServerFailed,
    TimedOut,
    UnknownModel,
    Unreachable,
    VisiontowerError,
)
from visiontower_client.errors import of_problem
from visiontower_client.wire import Wire

pytestmark = pytest.mark.anyio


class Waits:
    """A wire whose waits are written down instead of waited for. answers: one a request, the last again and again."""

    def __init__(self, answers: Sequence[httpx.Response | Exception], *, retries: int = 3) -> None:
        self.waited: list[float] = []
        self.asked: list[httpx.Request] = []
        self._answers = list(answers)

        async def sleep(seconds: float) -> None:
            self.waited.append(seconds)

        self.wire = Wire(
            "http://service/prefix/",
            api_key="secret",
            timeout=5,
            in_flight=1,
            retries=retries,
            transport=httpx.MockTransport(self._answer),
            sleep=sleep,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


FINE = httpx.Response(200, json={"fine": True})


def refusal(status: int = 503, retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, json={"type": "/problems/overloaded", "status": status}, headers=headers)


async def test_a_refusal_is_tried_again_after_the_time_it_asks_for() -> None:
    waits = Waits([refusal(retry_after="3"), refusal(429, retry_after="2"), FINE])
    assert await waits.wire.get("/models") == {"fine": True}
    assert len(waits.asked) == 3
    for waited, asked in zip(waits.waited, (3, 2), strict=True):
        assert asked <= waited <= 1.25 * asked


async def test_and_at_least_after_a_time_that_doubles() -> None:
    refused: list[httpx.Response | Exception] = [
        httpx.ConnectError("refused"),
        refusal(502),
        httpx.RemoteProtocolError("hung up"),
    ]
    waits = Waits([*refused, refusal(retry_after="1"), FINE], retries=4)
    await waits.wire.get("/models")
    for waited, step in zip(waits.waited, (0.25, 0.5, 1.0, 2.0), strict=True):
        assert step <= waited <= 1.25 * step


async def test_a_request_that_a_gateway_has_lost_is_tried_again() -> None:
    """Ray's proxy answers so for a replica that was killed; a 500 of the service itself is a problem."""
    lost = httpx.Response(500, text="Internal Server Error")
    waits = Waits([lost, httpx.Response(500, json={"detail": "worker gone"}), FINE])
    assert await waits.wire.get("/models") == {"fine": True}
    with pytest.raises(Overloaded, match="Internal Server Error") as raised:
        await Waits([lost], retries=1).wire.get("/models")
    assert raised.value.status == 500


@pytest.mark.parametrize(
    "failed",
    [
        httpx.Response(500, json={"type": "/problems/encoder-failed", "status": 500}),
        httpx.Response(500, text="{", headers={"content-type": "application/problem+json"}),
    ],
)
async def test_a_failure_of_the_service_is_not_tried_again(failed: httpx.Response) -> None:
    waits = Waits([failed, FINE])
    with pytest.raises(ServerFailed):
        await waits.wire.get("/models")
    assert len(waits.asked) == 1


async def test_clients_refused_together_do_not_come_back_together() -> None:
    waits = Waits([refusal(retry_after="1")], retries=20)
    with pytest.raises(Overloaded):
        await waits.wire.get("/models")
    assert len(set(waits.waited)) > 15


async def test_tries_are_bounded_and_the_last_refusal_is_raised() -> None:
    waits = Waits([refusal(retry_after="1")], retries=2)
    with pytest.raises(Overloaded) as raised:
        await waits.wire.get("/models")
    assert len(waits.asked) == 3
    assert (raised.value.status, raised.value.slug, raised.value.retry_after_s) == (503, "overloaded", 1.0)


async def test_a_server_that_wants_minutes_is_not_waited_for() -> None:
    waits = Waits([refusal(retry_after="900")])
    with pytest.raises(Overloaded) as raised:
        await waits.wire.get("/models")
    assert raised.value.retry_after_s == 900
    assert waits.waited == []


@pytest.mark.parametrize("retry_after", ["1e400", "inf", "nan", "-5", "soon", "59", "Wed, 21 Oct 2045 07:28:00 GMT"])
async def test_whatever_a_server_wants_the_waits_are_bounded(retry_after: str) -> None:
    waits = Waits([refusal(retry_after=retry_after)])
    with pytest.raises(Overloaded):
        await waits.wire.get("/models")
    assert len(waits.waited) <= 3
    assert all(0.25 <= waited <= 75 for waited in waits.waited)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504, 507])
async def test_nothing_else_is_tried_again(status: int) -> None:
    waits = Waits([httpx.Response(status, json={"status": status})])
    with pytest.raises(VisiontowerError):
        await waits.wire.get("/models")
    assert len(waits.asked) == 1


async def test_an_answer_that_takes_too_long_is_not_asked_for_again() -> None:
    waits = Waits([httpx.ReadTimeout("")])
    with pytest.raises(TimedOut, match="within 5 s"):
        await waits.wire.get("/models")
    assert len(waits.asked) == 1


async def test_a_request_has_the_key_and_the_path_below_the_address() -> None:
    waits = Waits([FINE])
    await waits.wire.get("/models/a:b/c@d")
    (request,) = waits.asked
    assert request.url == "http://service/prefix/models/a:b/c@d"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["user-agent"].startswith("visiontower-client")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>a proxy's page</html>", headers={"content-type": "text/html"}),
        httpx.Response(200, json=[1, 2]),
    ],
)
async def test_another_server_s_answer_is_no_visiontower(answer: httpx.Response) -> None:
    with pytest.raises(ServerFailed, match="something else than visiontower"):
        await Waits([answer]).wire.get("/models")


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b'\x10\0\0\0\0\0\0\0{"pooled": [1]}  ' * 2],
)
async def test_a_broken_safetensors_answer_is_an_error_too(content: bytes) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=content, headers={"content-type": "application/vnd.safetensors"})

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as own:
        with pytest.raises(ServerFailed, match="something else than visiontower"):
            await own.embed([b"1", b"2"])


async def test_an_answer_with_fewer_vectors_than_images_is_refused() -> None:
    app = app_of()

    class Losing(httpx.ASGITransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            content = (await response.aread()).replace(b'"index":"0,1"', b'"index":"0,0"')
            return httpx.Response(200, content=content, headers={"content-type": response.headers["content-type"]})

    async with app.router.lifespan_context(app), AsyncClient("http://service", transport=Losing(app)) as own:
        with pytest.raises(ServerFailed, match="2 entries for 2 inputs"):
            await own.embed([noise(1), noise(2)])


async def test_a_gateway_s_page_is_shown_in_brief() -> None:
    page = httpx.Response(502, text="<h1>Bad Gateway</h1>\n" + "x" * 5000)
    with pytest.raises(Overloaded) as raised:
        await Waits([page], retries=0).wire.get("/models")
    assert "<h1>Bad Gateway</h1> x" in str(raised.value)
    assert len(str(raised.value)) < 300


EXPECTED: dict[int, type[VisiontowerError]] = {
    400: InvalidRequest, 401: NotAllowed, 403: NotAllowed, 404: UnknownModel, 405: InvalidRequest, 406: InvalidRequest,
    408: TimedOut, 413: LimitExceeded, 415: InvalidRequest, 422: InvalidRequest, 429: Overloaded, 431: LimitExceeded,
    499: InvalidRequest, 500: ServerFailed, 503: Overloaded, 504: TimedOut, 507: ServerFailed,
}  # fmt: skip


@pytest.mark.parametrize(("slug", "status"), [(kind.slug, kind.status) for kind in TYPES.values()])
def test_every_problem_of_the_service_has_its_exception(slug: str, status: int) -> None:
    error = of_problem({"type": f"/problems/{slug}", "title": "t", "status": status, "detail": "d", "limit": 3})
    assert (error.slug, error.status, error.detail, error.facts) == (slug, status, "d", {"limit": 3})
    about_an_image = ("image" in slug and "images" not in slug) or slug == "invalid-base64"
    expected = BadImage if about_an_image else EXPECTED[status]
    if slug in ("no-such-route", "unknown-problem", "on-another-port"):
        expected = InvalidRequest
    assert type(error) is expected


def test_a_missing_key_is_an_error_of_its_own() -> None:
    assert type(of_problem({"status": 401})) is NotAllowed
    assert type(of_problem({"status": 403})) is NotAllowed


async def test_overload_of_the_real_service_has_its_facts() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate), queue_images=2, max_images=2)
    async with client_of(app, retries=0) as own:
        gate.close()
        running = own.embed_iter([noise(1), noise(2), noise(3)], batch=1, ordered=False)
        try:
            with pytest.raises(Overloaded) as raised:
                await anext(running)
        finally:
            gate.is_open.set()
            await running.aclose()
    assert raised.value.slug == "overloaded"
    assert (raised.value.retry_after_s or 0) >= 1


async def test_limits_of_the_real_service() -> None:
    async with client(max_images=2) as own:
        with pytest.raises(LimitExceeded) as raised:
            await own.embed([noise(seed) for seed in range(3)])
        assert (raised.value.facts["actual"], raised.value.facts["limit"]) == (3, 2)
        assert len(await own.embed([noise(seed) for seed in range(3)], batch=2)) == 3


async def test_an_encoder_that_fails_is_the_server_s_fault() -> None:
    def fail(batch: int) -> None:
        if failing:
            raise EncoderFailed("it broke")

    failing = False
    async with client(FakeEncoder(before=fail)) as own:
        failing = True
        items = await own.embed([noise(1), noise(2)], errors="return")
    assert [type(item.error) for item in items] == [ServerFailed, ServerFailed]


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x:port", "http://x\n", "http://x/?a=1", None],
)
def test_an_address_of_another_form_is_refused(address: Any) -> None:
    with pytest.raises(ValueError, match="like http://127"):
        AsyncClient(address)


@pytest.mark.parametrize("key", ["secret\n", "schlüssel", b"secret"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(ValueError, match="api_key") as refused:
        AsyncClient(api_key=key)
    assert "secret" not in str(refused.value)


def test_a_client_of_another_event_loop_says_so() -> None:
    own = Waits([FINE]).wire
    assert asyncio.run(own.get("/models")) == {"fine": True}
    with pytest.raises(RuntimeError, match=r"in each asyncio\.run"):
        asyncio.run(own.get("/models"))


async def test_where_nothing_listens_it_says_so() -> None:
    async with AsyncClient("http://127.0.0.1:9", retries=0) as own:
        with pytest.raises(Unreachable, match="visiontower serve"):
            await own.ready()
