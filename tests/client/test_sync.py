"""Client, the one without an event loop: the same calls over real sockets."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder
from tests.client.support import command, listening
from tests.support.serving import Gate, noise
from visiontower_client import BadImage, Client, UnknownModel, Unreachable

PICTURES = [noise(seed) for seed in range(40)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listening() as found:
        yield found


@pytest.fixture
def own(address: str) -> Iterator[Client]:
    with Client(address) as found:
        yield found


def test_every_call_works_over_a_socket(own: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    vectors = own.embed(PICTURES, batch=3)
    assert vectors.shape == (40, 6)
    np.testing.assert_array_equal(own.embed(tmp_path.glob("*.png")), vectors[:1])
    both = own.embed(PICTURES[0], output="both")
    np.testing.assert_array_equal(both.pooled, vectors[:1])
    assert both.tokens.shape == (1, 16, 12)
    assert own.similarity(PICTURES, ["a", "b"]).cosine.shape == (40, 2)
    assert own.vram(batch=2)["batch"] == 2
    assert own.models()[0]["id"] == own.model("fake:vit")["id"] == "fake:vit"
    assert own.ready()
    with pytest.raises(UnknownModel):
        own.embed(PICTURES, model="nobody")


def test_numbers_are_those_of_the_plain_route(own: Client, address: str) -> None:
    with httpx.Client(base_url=address, trust_env=False) as plain:
        files = [("image", picture) for picture in PICTURES]
        answer = plain.post("/embed?output=pooled", files=files).json()
    theirs = np.array([entry["pooled"]["data"] for entry in answer["data"]], np.float32)
    np.testing.assert_array_equal(own.embed(PICTURES), theirs)


@pytest.mark.parametrize("ordered", [True, False])
def test_results_can_be_taken_one_by_one(own: Client, ordered: bool) -> None:
    vectors = own.embed(PICTURES)
    seen = []
    for item in own.embed_iter(iter(PICTURES), batch=3, ordered=ordered):
        assert item.pooled is not None
        np.testing.assert_array_equal(item.pooled, vectors[item.index])
        seen.append(item.index)
    assert sorted(seen) == list(range(40))
    assert seen == sorted(seen) or not ordered


def test_who_stops_early_leaves_nothing_behind(own: Client) -> None:
    for item in own.embed_iter(PICTURES, batch=2):
        assert item.index == 0
        break
    with pytest.raises(BadImage, match="input 1"):
        own.embed([PICTURES[0], b"no image"])
    assert len(own.embed(PICTURES)) == 40


def test_a_client_may_be_closed_before_its_results_are_dropped(address: str) -> None:
    own = Client(address)
    left = own.embed_iter(PICTURES, batch=1)
    assert next(left).index == 0
    own.close()
    del left


def program(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, to its end."""
    line = [sys.executable, "-W", "ignore", "-c", text, *arguments]  # Python 3.12 warns of forks beside threads
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


LEFT = """
import sys
from pathlib import Path
from visiontower_client import Client
client = Client(sys.argv[1])
left = client.embed_iter([Path(sys.argv[2]).read_bytes()] * 100, batch=1)
print(next(left).index)
"""
STUCK = """
import threading
from visiontower_client import Client
def source():
    yield b"an image"
    threading.Event().wait()
with Client("http://127.0.0.1:9", retries=0) as client:
    client.embed(source(), batch=1)
"""
FORKED = """
import os
from visiontower_client import Client
with Client("http://127.0.0.1:9") as client:
    if os.fork() == 0:
        try:
            client.models()
        except RuntimeError as error:
            print(error, flush=True)
        client.close()
        os._exit(0)
    os.wait()
print("and the parent goes on")
"""


def test_a_program_ends_whose_results_were_not_all_taken(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    ended = program(LEFT, address, str(tmp_path / "a.png"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


def test_a_program_ends_whose_source_never_gives_its_next_picture() -> None:
    ended = program(STUCK)
    assert ended.returncode == 1
    assert "Unreachable" in ended.stderr


def test_in_a_forked_process_it_is_an_error_and_no_wait() -> None:
    ended = program(FORKED)
    first, second = ended.stdout.splitlines()
    assert "make a client in each process" in first
    assert second == "and the parent goes on"
    assert ended.stderr == ""


def test_a_client_that_is_left_alone_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    Client("http://127.0.0.1:9")
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "visiontower-client"]


def test_it_may_be_closed_by_several_threads_while_others_ask(address: str) -> None:
    own = Client(address)
    has_asked = threading.Semaphore(0)

    def ask() -> None:
        while True:
            try:
                own.embed(PICTURES[:2], batch=1)
            except RuntimeError:
                return
            except BaseException:  # cancelled: it asks again at once
                pass
            has_asked.release()

    asking = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    closing = [threading.Thread(target=own.close, daemon=True) for _ in range(3)]
    for thread in asking:
        thread.start()
    assert has_asked.acquire(timeout=30)
    for thread in closing:
        thread.start()
    for thread in closing + asking:
        thread.join(30)
        assert not thread.is_alive()


def test_threads_may_share_one(own: Client) -> None:
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = own.embed(PICTURES[number : number + 10], batch=2)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vectors = own.embed(PICTURES)
    for number, rows in found.items():
        np.testing.assert_array_equal(rows, vectors[number : number + 10])


def test_closing_ends_what_runs() -> None:
    gate = Gate()
    with listening(FakeEncoder(before=gate)) as address:
        gate.close()
        own = Client(address)
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                own.embed(PICTURES)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert gate.entered.wait(30)
        own.close()
        thread.join(30)
        assert not thread.is_alive()
        own.close()  # twice is once
        with pytest.raises(RuntimeError, match="closed"):
            own.models()
        gate.is_open.set()
    assert len(failed) == 1


def test_a_client_that_would_wait_for_itself_says_so(own: Client) -> None:
    with pytest.raises(RuntimeError, match="wait for itself"):
        own.embed(PICTURES, progress=lambda done, total: print(own.models()))


def test_help_has_the_words_of_the_asynchronous_one() -> None:
    assert "A str is a text" in (Client.embed.__doc__ or "")
    assert Client.vram.__name__ == "vram"


def test_a_server_started_by_the_command() -> None:
    """And it keeps its connections: a second call after the first needs no new try."""
    with command() as address, Client(address, retries=0) as own:
        assert own.embed(PICTURES, batch=4).shape == (40, 6)
        assert own.embed(["a cat", PICTURES[0]]).shape == (2, 6)
    with Client(address, retries=0) as own, pytest.raises(Unreachable):
        own.embed(PICTURES)
