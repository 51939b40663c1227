"""Who decodes, and when: in fair order, within the memory, and a decode that nobody waits for is given up."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from PIL import Image

from encoders.contract.errors import UndecodableImage, VisiontowerError
from encoders.images.price import Price
from service.engine.decoding import Decode, Decoding, Job
from service.engine.engine import Engine
from service.engine.values import Embedding, EmbedRequest
from service.errors import DeadlineExceeded, OverHostMemory, ShuttingDown
from service.memory.account import Account
from service.settings import Settings
from tests.encoders.images.files import with_scans
from tests.support.serving import backend_of, image_bytes
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

MIB = 2**20
PLAIN = Price(is_plain=True, decode_bytes=MIB, nbytes=MIB, work=1, cpu_s=30)
DEAR = replace(PLAIN, is_plain=False, decode_bytes=64 * MIB, nbytes=64 * MIB)


class Jobs:
    """Jobs that say their name when they run, or fail; a gate holds the thread that runs the first."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self.said: queue.Queue[object] = queue.Queue()
        self.inside, self.gate = threading.Event(), threading.Event()

    def submit(self, name: str, price: Price = PLAIN, flow: object = None, *, is_held: bool = False) -> Job:
        def run(decode: Decode) -> None:
            if is_held:
                self.inside.set()
                assert self.gate.wait(30)
            self.said.put(name)

        return self.work(run, price, flow)

    def work(
        self, run: Callable[[Decode], Callable[[], None] | None], price: Price = PLAIN, flow: object = None
    ) -> Job:
        job = Job(price, run, self.said.put)
        self.decoding.submit(job, flow or object())
        return job

    def hold(self, price: Price = PLAIN) -> None:
        """Keep the thread busy until the gate is opened."""
        self.submit("held", price, is_held=True)
        assert self.inside.wait(30)

    def next(self, count: int = 1) -> list[object]:
        return [self.said.get(timeout=30) for _ in range(count)]


@contextmanager
def jobs_of(*, limit: int = 800 * MIB, threads: int = 1) -> Iterator[tuple[Jobs, Account]]:
    account = Account(limit)
    decoding = Decoding(account, threads=threads, processes=1)
    try:
        yield Jobs(decoding), account
    finally:
        decoding.stop()


def test_who_asked_for_little_is_first() -> None:
    with jobs_of() as (jobs, _):
        jobs.hold()
        much = object()
        for number in range(3):
            jobs.submit(f"huge {number}", replace(PLAIN, work=10_000), much)
        jobs.submit("thumbnail")
        jobs.gate.set()
        assert jobs.next(5) == ["held", "thumbnail", "huge 0", "huge 1", "huge 2"]


def test_little_images_that_wait_are_decoded_together_before_what_follows_for_each() -> None:
    with jobs_of() as (jobs, _):
        jobs.hold()
        for name, work in (("a", 1), ("b", 2), ("dear", 10**7)):

            def run(decode: Decode, name: str = name) -> Callable[[], None]:
                jobs.said.put(f"{name} decoded")
                return lambda: jobs.said.put(f"{name} queued")

            jobs.work(run, replace(PLAIN, work=work))
        jobs.gate.set()
        assert jobs.next(4) == ["held", "a decoded", "b decoded", "a queued"]
        assert jobs.next(3) == ["b queued", "dear decoded", "dear queued"]


def test_who_is_dropped_leaves_the_line_and_is_told() -> None:
    with jobs_of() as (jobs, _):
        jobs.hold()
        gone = jobs.submit("gone")
        jobs.submit("stays")
        jobs.decoding.drop(gone)
        jobs.decoding.drop(gone)
        assert jobs.next() == [None]
        jobs.gate.set()
        assert jobs.next(2) == ["held", "stays"]


def test_memory_is_held_while_a_decode_runs_and_what_does_not_fit_waits_for_it() -> None:
    with jobs_of(threads=2) as (jobs, account):
        jobs.hold(replace(PLAIN, nbytes=600 * MIB))
        assert account.held["image"] == 600 * MIB
        jobs.submit("large", replace(PLAIN, nbytes=300 * MIB))
        jobs.submit("little", replace(PLAIN, work=10**9))
        assert jobs.next() == ["little"]
        jobs.gate.set()
        assert jobs.next(2) == ["held", "large"]
    with account.hold("image", 700 * MIB):
        pass  # all was given back


def test_a_waiting_decode_begins_when_another_stage_gives_memory_back() -> None:
    with jobs_of() as (jobs, account):
        body = account.hold("body", 500 * MIB)
        jobs.submit("large", replace(PLAIN, nbytes=500 * MIB))
        jobs.submit("little", replace(PLAIN, work=10**9))
        assert jobs.next() == ["little"]
        assert account.short
        body.release()
        assert jobs.next() == ["large"]
        assert not account.short


def test_one_that_can_never_fit_is_refused_at_once() -> None:
    with jobs_of() as (jobs, _), pytest.raises(OverHostMemory, match="700 MiB") as refused:
        jobs.submit("huge", replace(PLAIN, nbytes=900 * MIB))
    assert refused.value.facts == {"limit": 700 * MIB, "actual": 900 * MIB}


def test_dear_images_do_not_stand_before_plain_ones() -> None:
    with jobs_of() as (jobs, _):
        jobs.hold(DEAR)
        jobs.submit("dear", DEAR)
        jobs.submit("plain")
        assert jobs.next() == ["plain"]
        jobs.gate.set()
        assert jobs.next(2) == ["held", "dear"]


def test_a_dear_image_is_decoded_apart_and_given_up_when_it_is_dropped() -> None:
    with jobs_of() as (jobs, _):
        outcomes: queue.Queue[object] = queue.Queue()

        def run(decode: Decode) -> None:
            jobs.inside.set()
            assert jobs.gate.wait(30)
            try:
                outcomes.put(decode(image_bytes(image_format="BMP"), max_pixels=MIB, at_least=None).size)
            except VisiontowerError as error:
                outcomes.put(error)

        dropped = jobs.work(run, DEAR)
        assert jobs.inside.wait(30)
        jobs.decoding.drop(dropped)
        jobs.gate.set()
        assert isinstance(outcomes.get(timeout=30), UndecodableImage)
        jobs.work(run, DEAR)
        assert outcomes.get(timeout=30) == (40, 30)


def test_at_the_end_what_waits_fails_and_nothing_more_is_taken() -> None:
    with jobs_of() as (jobs, _):
        jobs.hold()
        jobs.submit("waits")
        jobs.decoding.stop()
        assert isinstance(jobs.next()[0], ShuttingDown)
        with pytest.raises(ShuttingDown):
            jobs.submit("late")
        jobs.gate.set()
        assert jobs.next() == ["held"]


def test_a_job_that_raises_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    def run(decode: Decode) -> None:
        raise RuntimeError("unforeseen")

    with jobs_of() as (jobs, _):
        jobs.work(run)
        jobs.submit("next")
        assert jobs.next() == ["next"]
    assert "was not foreseen" in caplog.text


def test_a_plain_image_is_decoded_here() -> None:
    with jobs_of() as (jobs, _):

        def run(decode: Decode) -> None:
            jobs.said.put(decode(image_bytes(), max_pixels=MIB, at_least=None))

        jobs.work(run)
        (image,) = jobs.next()
        assert isinstance(image, Image.Image)
        assert not jobs.decoding._dear._threads


async def test_an_image_that_never_fits_and_one_that_libtiff_prints_of_fail_at_their_places(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tiff = image_bytes(size=(400, 300), image_format="TIFF", compression="tiff_lzw")
    broken = tiff[:100] + bytes(300) + tiff[400:]
    sources = [image_bytes(), image_bytes(size=(2000, 2000)), broken, tiff, image_bytes(image_format="GIF")]
    settings = Settings(model=("fake:vit",), memory_budget=32 * MIB)
    async with Engine(settings, backend=backend_of()) as engine:
        items = (await engine.embed(EmbedRequest(sources))).items
        await until(lambda: engine.account.held["image"] == 0)  # the threads let go a moment after the answer
    assert [type(item) for item in items] == [Embedding, OverHostMemory, UndecodableImage, Embedding, Embedding]
    assert capfd.readouterr() == ("", "")


async def test_who_leaves_takes_its_decode_along() -> None:
    """A JPEG that takes a minute, of a caller who does not wait, once more than there are processes."""
    jpeg = with_scans(image_bytes(size=(4000, 3000), image_format="JPEG", progressive=True), 20_000)
    async with Engine(Settings(model=("fake:vit",)), backend=backend_of()) as engine:
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                await engine.embed(EmbedRequest([jpeg], timeout_s=0.2))
        (item,) = (await engine.embed(EmbedRequest([image_bytes(image_format="GIF")], timeout_s=20))).items
        assert isinstance(item, Embedding)
