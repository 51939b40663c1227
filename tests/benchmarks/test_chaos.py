"""The attacks are what they say they are, and end when they should. No speed."""

import asyncio
import io

import pytest
from PIL import Image

from benchmarks import attacks
from benchmarks.attacks import ATTACKS, Attacker
from benchmarks.chaos import Behaved, Phase, _table


def opened(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def test_every_attack_is_described() -> None:
    assert len(ATTACKS) >= 10
    assert all(attack.__doc__ for attack in ATTACKS.values())


def test_scans_are_a_picture_whatever_their_number() -> None:
    few, many = attacks.scans(1, 64), attacks.scans(100, 64)
    assert opened(few).tobytes() == opened(many).tobytes()
    assert many.count(b"\xff\xda") == 101


@pytest.mark.filterwarnings("ignore:Metadata Warning")  # of the rationals, which are too many
@pytest.mark.parametrize(
    ("file", "mode", "size"),
    [
        (attacks.png16(32), "RGBA", (32, 32)),
        (attacks.tiff(32, 16), "F", (32, 16)),
        (attacks.tiff(16, 16, tile=1), "L", (16, 16)),
        (attacks.tiff(16, 16, extra=8), "F", (16, 16)),
        (attacks.ppm(100), "RGB", (2, 2)),
    ],
)
def test_a_bomb_is_a_picture(file: bytes, mode: str, size: tuple[int, int]) -> None:
    image = opened(file)
    assert (image.mode, image.size) == (mode, size)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", b""])
@pytest.mark.anyio
async def test_an_attacker_notes_how_its_requests_end(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        us = Attacker(server.sockets[0].getsockname()[1], 30)
        await us.ask(attacks.get("/"))
    assert us.ends == ({"503": 1} if answer else {"closed": 1})


def test_the_report_holds_an_attack_against_the_time_before() -> None:
    calm = Behaved(100, 0, 0, 0, 0, 20.0, 0.01, 0.02, 1.0, 0.1)
    attacked = Behaved(50, 3, 0, 1, 0, 10.0, 0.02, 0.05, 1.0, 0.1)
    table = _table([Phase("scans", attacked, 0.15, 10**9, {"503": 7})], than=Phase("nothing", calm, 0.0, 10**9, {}))
    row = [next(iter(column.cells)) for column in table.columns]
    assert row == ["scans", "50", "3", "0", "1", "0", "20.0", "50.0", "2.5 x", "150", "1000", "7 503"]
