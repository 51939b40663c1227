"""The bench harness: its arithmetic, its client, its pictures, and one short run against the service. No speed."""

import asyncio
import csv
import ctypes
import io
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import combinations
from multiprocessing import RawArray
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from benchmarks import limit, peers, report, serve, servers, simulate, text_towers
from benchmarks.floor import Floor
from benchmarks.http1 import Address, Connection, post
from benchmarks.idle import of_samples
from benchmarks.images import Kind, pictures
from benchmarks.limit import Plan, plans
from benchmarks.load import Sample, Target, Usage, Window, closed_loop, open_loop, percentiles, poisson, requests, wrong
from benchmarks.report import Results, Setting, lines, of_limit, of_window
from benchmarks.schemes import NotServed
from benchmarks.servers import FLAGS, FLOOR, SERVERS, command
from benchmarks.works import WORKS, Work, distinct
from encoders import decode
from encoders.adapters.fake import FakeEncoder
from encoders.contract.spec import Preprocessing
from service.http.siblings import Siblings
from service.run.server import make_server
from service.settings import Settings
from tests.support.serving import backend_of, noise

NOBODY = RawArray(ctypes.c_bool, 0), RawArray(ctypes.c_uint64, 0)
NOW = Usage(cpu_s=0.0, rss=0)
SETTING = Setting("small", "visiontower", "", concurrency=2)


def sample(*, status: int = 200, body: bytes = b"", picture: int = 0, seconds: float = 0.1) -> Sample:
    return Sample(picture, status, ended=1.0, seconds=seconds, body=body)


def window(*samples: Sample, lost: int = 0, seconds: float = 2.0) -> Window:
    return Window(seconds, samples, lost, NOW, Usage(cpu_s=3.0, rss=5_000_000), client_cpu_s=0.5)


def target(references: list[list[float]], vector: Callable[[bytes], list[float]] = lambda body: [1.0, 0.0]) -> Target:
    return Target(
        Address("127.0.0.1", 1), [b""] * len(references), np.array(references, np.float32), vector, os.getpid()
    )


# Arithmetic.


def test_percentiles_of_nothing_are_not_numbers() -> None:
    assert np.isnan(percentiles([])).all()


def test_percentiles_are_those_of_the_sorted_values() -> None:
    assert percentiles([value / 100 for value in range(101)]) == pytest.approx((0.5, 0.95, 0.99))


def test_poisson_arrivals_are_as_many_as_asked_for_and_the_same_for_a_seed() -> None:
    times = list(poisson(50.0, 200.0, seed=1))
    assert times == sorted(times)
    assert times == list(poisson(50.0, 200.0, seed=1)) != list(poisson(50.0, 200.0, seed=2))
    assert 0 < times[0] < times[-1] < 200
    assert len(times) == 10_000
    assert np.diff(times).std() == pytest.approx(1 / 50, rel=0.1)  # an exponential's is its mean


def test_a_window_counts_only_good_answers_and_names_the_others() -> None:
    seen = window(sample(), sample(), sample(status=503), sample(status=0), lost=1)
    assert seen.images_per_s == 1.0
    assert seen.cores == 1.5
    assert seen.errors == {"503": 1, "hung up": 1, "unanswered": 1}


@pytest.mark.parametrize(
    ("references", "found"),
    [([[1.0, 0.0]], 0), ([[0.0, 1.0]], 1), ([[0.9, 0.43589]], 1)],
    ids=["right", "other", "near"],
)
def test_an_answer_far_from_its_reference_is_wrong(references: list[list[float]], found: int) -> None:
    assert wrong([sample()], target(references)) == found


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError])
def test_an_answer_that_cannot_be_read_is_wrong(error: type[Exception]) -> None:
    def vector(body: bytes) -> list[float]:
        raise error

    assert wrong([sample(), sample(status=503)], target([[1.0, 0.0]], vector)) == 1


def test_pictures_whose_vectors_are_close_are_used_once() -> None:
    vectors = np.array([[1, 0], [0.999, 0.0447], [0, 1], [0.6, 0.8]], np.float32)
    assert distinct(vectors, below=0.99) == [0, 2, 3]


def test_ratios_are_to_the_limit_and_the_best_peer_of_the_same_work() -> None:
    rows = [
        of_limit(Setting("small", "limit", ""), rate, round=round, seconds=1.0)
        for round, rate in enumerate((90.0, 100.0, 500.0))
    ]
    ours = [("visiontower", "small", 80.0), ("floor", "small", 90.0)]
    others = [("fastapi", "small", 10.0), ("litserve@bfloat16", "small", 20.0), ("fastapi", "12mp", 1000.0)]
    for server, work, rate in [*ours, *others]:
        setting = Setting(work, server, "", concurrency=32)
        rows.append(replace(rows[0], work=work, server=setting.server, concurrency=32, images_per_s=rate))
    found = {(line.rows[0].work, line.rows[0].server): (line.of_limit, line.of_peer) for line in lines(rows)}
    assert found["small", "visiontower"] == (0.8, 4.0)
    assert found["small", "fastapi"] == (0.1, 0.5)
    assert found["12mp", "fastapi"] == (None, 1.0)


def test_peers_are_compared_at_equal_concurrency() -> None:
    like = of_limit(SETTING, 50.0, round=1, seconds=1.0)
    rows = [replace(like, concurrency=256), replace(like, server="fastapi", concurrency=32, images_per_s=10.0)]
    assert [line.of_peer for line in lines(rows) if line.rows[0].concurrency == 256] == [None]


def test_each_row_is_on_disk_when_it_is_added(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.csv"
    row = of_window(SETTING, window(sample(body=b"")), target([[1.0, 0.0]]), round=1, warmup_s=0.5)
    for number in (1, 2):
        Results(file).add(row)
        with file.open() as written:
            kept = list(csv.DictReader(written))
        assert len(kept) == number
    assert (kept[0]["server"], float(kept[0]["p50_ms"]), float(kept[0]["server_cores"])) == ("visiontower", 100.0, 1.5)


def test_a_curve_is_of_medians_over_the_rounds_by_work_policy_and_load() -> None:
    like = of_limit(SETTING, 50.0, round=1, seconds=1.0)
    rows = [
        replace(like, server=policy, offered_per_s=load, p50_ms=load * ms, p99_ms=2 * load * ms)
        for ms in (1.0, 9.0, 2.0)
        for policy in ("ours", "no wait")
        for load in (20.0, 10.0)
    ]
    found = report.curves([*rows, replace(like, work="12mp", server="ours", offered_per_s=1.0, p50_ms=7.0)])
    points = [report.Point(10.0, 20.0, 40.0), report.Point(20.0, 40.0, 80.0)]
    assert found == {"small": {"ours": points, "no wait": points}, "12mp": {"ours": [report.Point(1.0, 7.0, 0.0)]}}
    assert [table.row_count for table in report.curve_tables(rows)] == [2]


def test_the_plot_is_written(tmp_path: Path) -> None:
    row = of_limit(SETTING, 50.0, round=1, seconds=1.0)
    report.plot(tmp_path / "bars.png", [row, replace(row, server="fastapi")])
    report.plot_curve(tmp_path / "curve.png", [replace(row, offered_per_s=10.0, p50_ms=1.0, p99_ms=2.0)])
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("bars.png", "curve.png"))


def test_what_an_idle_server_adds_is_its_total_less_the_work() -> None:
    bodies = [
        b'{"timing_ms": {"decode": 2.0, "preprocess": 1.0, "queue": 0.3, "forward": 4.0, "total": %d}}' % total
        for total in (8, 9, 10)
    ]
    idle = of_samples("small", [sample(body=body) for body in bodies])
    assert idle.added == pytest.approx(2.0)
    assert (idle.total, idle.requests) == (9.0, 3)


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_every_plan_uses_the_cores_and_can_be_written_down(cores: int) -> None:
    for plan in plans(cores):
        assert plan.processes * plan.lanes * plan.threads == cores
        assert Plan.parse(str(plan)) == plan


def test_the_rate_of_a_limit_leaves_out_the_batch_it_starts_with() -> None:
    assert limit._rate([(10.0, 16), (10.5, 16), (11.0, 16)]) == 32.0
    assert limit._rate([(10.0, 16)]) == 0.0


# Pictures and servers.


def test_pictures_are_different_jpegs_of_the_size_asked_for_and_made_once(tmp_path: Path) -> None:
    kind = Kind("few", 9, (30, 40), noise=1.0)
    made = pictures(kind, tmp_path)
    assert len(set(made)) == 9
    for jpeg in made:
        image = Image.open(io.BytesIO(jpeg))
        assert image.format == "JPEG"
        assert (30 <= min(image.size) <= 40, max(image.size)) == (True, min(image.size) * 4 // 3)
    (tmp_path / "few" / "003.jpg").write_bytes(made[0])
    assert pictures(kind, tmp_path)[3] == made[0]


@pytest.mark.parametrize(("one", "other"), list(combinations(limit.DECODERS, 2)))
@pytest.mark.parametrize("sight", ["shortest", "squash"])
def test_decoders_of_the_limit_see_the_same_picture(
    one: str, other: str, sight: Literal["shortest", "squash"], tmp_path: Path
) -> None:
    jpeg = pictures(Kind("one", 1, (200, 200)), tmp_path)[0]
    how = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize=sight)
    first, second = (limit.DECODERS[name](how, 64)(jpeg).astype(int) for name in (one, other))
    assert first.shape == second.shape == (64, 64, 3)
    assert np.abs(first - second).max() <= 3  # of 255: chroma is upsampled, and halves are rounded, in other ways


def test_every_peer_has_a_program_and_pins() -> None:
    assert set(peers.names()) == SERVERS.keys() - FLAGS.keys() - {FLOOR}
    for name in peers.names():
        pins = (peers.FOLDER / name / "requirements.txt").read_text().splitlines()
        assert all("==" in pin or pin.startswith("#") for pin in pins)


def test_a_server_is_named_with_its_dtype() -> None:
    names = "limit@eager-float32,visiontower@bfloat16"
    assert serve._arguments(["--against", names]).against == names.split(",")
    with pytest.raises(SystemExit):
        serve._arguments(["--against", "nobody"])


def test_quick_is_only_a_start_for_what_follows() -> None:
    arguments = serve._arguments(["--quick", "--seconds", "1"])
    assert (arguments.seconds, arguments.rounds, "fastapi" in arguments.against) == (1.0, 1, True)


class Folderless(Work):
    folder = Path("model")


def test_peers_compute_in_float32_unless_told() -> None:
    work = Folderless("w", "small", WORKS["small"].kind)
    assert command("fastapi", work, port=1, dtype="auto")[-1] == "float32"
    assert command("fastapi", work, port=1, dtype="bfloat16")[-1] == "bfloat16"
    assert "auto" in command("visiontower", work, port=1, dtype="auto")


def test_a_scheme_without_the_model_says_so() -> None:
    work = Folderless("w", "small", WORKS["small"].kind)
    with pytest.raises(NotServed, match="timm has no small"):
        command("visiontower-timm", work, port=1, dtype="auto")


# Batches and texts.


def test_simulated_callers_use_both_cores_however_many_they_are() -> None:
    costs = simulate.MODELS["vit-b-32"]
    one_core = 1 / (costs.forward + costs.image)
    for callers in (4, 16, 32):
        run = simulate.simulated(costs, "the service's", answers=200, callers=callers)
        assert run.now < 200 / one_core / 1.5


def test_random_texts_end_where_their_columns_do() -> None:
    ids, columns = text_towers.ids_of("labels", 8, context=77, pads=True)
    assert (ids[:, :columns] != 0).any(axis=0).all()
    assert not ids[:, columns:].any()
    assert (ids.max(axis=1) == 49407).all()
    assert text_towers.ids_of("full", 2, context=64, pads=False)[1] == 64


# The client, against a few lines of server.


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[Address, list[bytes]]]:
    """A server that gives these answers in turn, whoever asks, and hangs up at an empty one; what it was asked."""
    left, asked = list(answers), list[bytes]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            asked.append(head + await reader.readexactly(length))
            answer = left.pop(0)
            writer.write(answer)
            if not answer:
                break
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1]), asked


def ok(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", body])


@pytest.mark.anyio
async def test_a_connection_is_kept_for_the_next_request() -> None:
    chunked = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n3\r\npe!\r\n0\r\n\r\n"
    async with answering(ok(b"one"), chunked) as (address, asked):
        connection = await Connection.open(address)
        assert await connection.ask(post(address, "/a", b"x" * 300_000, content_type="image/jpeg")) == (200, b"one")
        assert await connection.ask(post(address, "/b", b"", content_type="image/jpeg")) == (503, b"nope!")
        assert connection.is_open
        connection.close()
    assert asked[0].startswith(b"POST /a HTTP/1.1\r\n")
    assert asked[0].endswith(b"x" * 300_000)


@pytest.mark.anyio
async def test_a_server_that_hangs_up_is_an_error_and_not_a_wait() -> None:
    async with answering(b"") as (address, _):
        connection = await Connection.open(address)
        with pytest.raises(ConnectionError):
            await connection.ask(post(address, "/", b"", content_type="image/jpeg"))
        assert not connection.is_open


@pytest.mark.anyio
async def test_a_connection_that_the_server_will_close_is_not_used_again() -> None:
    async with answering(ok(b"last", b"Connection: close")) as (address, _):
        connection = await Connection.open(address)
        assert (await connection.ask(post(address, "/", b"", content_type="image/jpeg"))).body == b"last"
        assert not connection.is_open


@pytest.mark.anyio
async def test_a_caller_goes_on_after_the_server_hung_up() -> None:
    async with answering(ok(b""), b"", ok(b"")) as (address, _):
        request = post(address, "/", b"", content_type="image/jpeg")
        asked = replace(target([[1.0, 0.0]]), address=address, requests=[request])
        samples = await requests(asked, 3, concurrency=1)
    assert [each.status for each in samples] == [200, 0, 200]


# The floor.


@pytest.mark.anyio
async def test_the_floor_answers_each_of_a_batch_with_its_own_vector() -> None:
    batches: list[int] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        batches.append(len(pixels))
        return pixels[:, 0, 0].to(torch.bfloat16)

    floor = Floor(lambda jpeg: np.full((1, 1, 3), jpeg[0], np.uint8), forward, siblings=Siblings(0, 0, 0, *NOBODY))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(floor), base_url="http://floor") as client:
        answers = await asyncio.gather(*(client.post("/", content=bytes([value])) for value in range(5)))
    assert [answer.json() for answer in answers] == [[float(value)] * 3 for value in range(5)]
    assert batches == [5]


# All of it, once.


@pytest.mark.anyio
@pytest.mark.parametrize("loop", ["closed", "open"])
async def test_the_service_answers_load_rightly(loop: str) -> None:
    encoder = FakeEncoder()
    images = [noise(seed) for seed in range(5)]
    pixels = np.stack([encoder.preprocess(decode(image), encoder.spec.size()) for image in images])
    pooled = encoder.encode(pixels, encoder.spec.outputs(pooled=True)).pooled
    assert pooled is not None
    references = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    server = make_server(Settings(model=("fake:vit",), port=0), backend=backend_of(encoder))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0)
    address = Address("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
    ours = SERVERS["visiontower"]
    sent = [post(address, ours.path, image, content_type="image/png") for image in images]
    asked = Target(address, sent, references, ours.vector, os.getpid())
    if loop == "closed":
        window = await closed_loop(asked, concurrency=2, seconds=1.0)
    else:
        window = await open_loop(asked, rate=50.0, seconds=1.0)
    server.should_exit = True
    await running
    row = of_window(Setting("fake", "visiontower", "", 2), window, asked, round=1, warmup_s=0.0)
    assert len(window.answered) == len(window.samples) > 0
    assert (row.wrong, row.errors) == (0, "")
    assert row.images_per_s > 0
    assert row.rss_after_mb > 0
    mixed_up = replace(asked, references=-references)
    assert wrong(window.samples, mixed_up) == len(window.samples)


def test_a_run_that_is_ended_ends_its_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def is_up(*_: object) -> None: ...

    monkeypatch.setattr(servers, "FOLDER", tmp_path)
    monkeypatch.setattr(servers, "_until_it_answers", is_up)
    started: list[int] = []
    monkeypatch.setattr(servers, "target", lambda *_, pid: started.append(pid))
    before = signal.getsignal(signal.SIGTERM)
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(SystemExit), servers.running(servers.OURS, WORKS["small"], program=program):
        signal.raise_signal(signal.SIGTERM)
    assert not psutil.pid_exists(started[0])
    assert signal.getsignal(signal.SIGTERM) == before
