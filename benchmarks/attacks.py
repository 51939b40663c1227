"""What one caller can send to take a service from the others: each attack goes on until it is told to stop.

    python -m benchmarks.attacks --list
    python -m benchmarks.attacks scans --port 8000 --seconds 10

It runs at the lowest priority: elsewhere an attacker has cores of its own. Prints `begins` once its files are made, and
how its requests ended, as JSON: HTTP statuses, `closed` by the server, `left` by us. 127.0.0.1 only.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import TypeAlias

from PIL import Image

_HOST = "127.0.0.1"
_PIECE = 65_536
_ANSWER_S = 30.0
_PAUSE_S = 0.05

Ends: TypeAlias = Counter[str]


class Attacker:
    """Connections to one port. ends: how its requests ended."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self._seconds = seconds
        self._until: float | None = None
        self.ends: Ends = Counter()

    @property
    def left_s(self) -> float:
        """Seconds that are left. The first look begins the attack."""
        if self._until is None:
            self._until = time.monotonic() + self._seconds
            print("begins", flush=True)
        return self._until - time.monotonic()

    async def ask(self, request: bytes, *, leave_s: float = _ANSWER_S) -> None:
        """Send a request and read its answer, or leave after a while."""
        try:
            reader, writer = await asyncio.open_connection(_HOST, self.port)
        except OSError:
            self.ends["refused"] += 1
            return
        try:
            async with asyncio.timeout(min(leave_s, max(0.0, self.left_s))):
                writer.write(request)
                with suppress(OSError):
                    await writer.drain()
                line = await reader.readline()
                self.ends[line.split(b" ")[1].decode() if line else "closed"] += 1
                while await reader.read(_PIECE):
                    pass
        except TimeoutError:
            self.ends["left"] += 1
        except (OSError, IndexError):
            self.ends["closed"] += 1
        finally:
            writer.transport.abort()

    async def trickle(self, first: bytes, piece: bytes, *, every_s: float) -> None:
        """Send `piece` again and again, and never read: until the server closes, or time is up."""
        try:
            _, writer = await asyncio.open_connection(_HOST, self.port)
        except OSError:
            self.ends["refused"] += 1
            return
        try:
            async with asyncio.timeout(max(0.0, self.left_s)):
                for start in range(0, len(first), _PIECE):
                    writer.write(first[start : start + _PIECE])
                    await writer.drain()
                while not writer.transport.is_closing():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(every_s)
            self.ends["closed"] += 1
        except TimeoutError:
            self.ends["left"] += 1
        except OSError:
            self.ends["closed"] += 1
        finally:
            writer.transport.abort()

    async def again(self, callers: int, requests: Callable[[], Iterator[bytes]], *, leave_s: float = _ANSWER_S) -> None:
        """So many callers, each sending the next request when its last has ended, and not more than 20 a second.

        The attack is in what the requests ask for: a flood of refusals would measure this machine's loopback.
        """
        source = requests()

        async def call() -> None:
            while self.left_s > 0:
                await self.ask(next(source), leave_s=leave_s)
                await asyncio.sleep(_PAUSE_S)

        await asyncio.gather(*(call() for _ in range(callers)))


def post(path: str, content: bytes, content_type: str) -> bytes:
    """A request whose connection ends with it."""
    return head(path, len(content), content_type) + content


def head(path: str, length: int, content_type: str) -> bytes:
    """Of a POST."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def get(path: str) -> bytes:
    """A request whose connection ends with it."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


# Files.


@cache
def scans(number: int = 20_000, side: int = 8192) -> bytes:
    """A progressive grey JPEG with so many scans that hold nothing."""

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    def scan(first: int, last: int, bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
        return segment(0xDA, bytes([1, 1, 0, first, last, 0])) + data

    blocks = (side // 8) ** 2
    one_code = bytes([1, *[0] * 15])
    start = b"\xff\xd8" + segment(0xDB, bytes([0, *[1] * 64]))
    start += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    start += segment(0xC4, b"\0" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    empty = scan(1, 63, ("0" + "1" * 14) * -(-blocks // 32_767))  # "the next 32,767 blocks hold nothing"
    return start + scan(0, 0, "0" * blocks) + empty * number + b"\xff\xd9"


@cache
def png16(side: int = 8190) -> bytes:
    """A PNG of one colour, with alpha, of 16 bits a sample."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + 8 * side)
    data = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def tiff(width: int, height: int, *, tile: int | None = None, extra: int = 0) -> bytes:
    """A TIFF of float samples in one deflated strip, or of bytes in tiles that all lie at one place.

    extra: rationals in its XResolution.
    """
    entries: list[tuple[int, int, int, bytes]] = []  # tag, type, count, value or data

    def short(tag: int, *values: int) -> None:
        entries.append((tag, 3, len(values), struct.pack(f"<{len(values)}H", *values)))

    def longs(tag: int, *values: int) -> None:
        entries.append((tag, 4, len(values), struct.pack(f"<{len(values)}I", *values)))

    bits = 8 if tile else 32
    pixels = bytes(256) if tile else zlib.compress(bytes(4 * width * height), 9)
    longs(256, width)
    longs(257, height)
    short(258, bits)
    short(259, 1 if tile else 8)
    short(262, 1)
    short(277, 1)
    if tile:
        count = -(-width // tile) * -(-height // tile)
        short(322, tile)
        short(323, tile)
        longs(324, *([8] * count))
        longs(325, *([tile * tile] * count))
    else:
        longs(273, 8)
        longs(278, height)
        longs(279, len(pixels))
        short(339, 3)
    if extra:
        entries.append((282, 5, extra, bytes(8 * extra)))
    at = 8 + len(pixels) + len(pixels) % 2
    after = at + 2 + 12 * len(entries) + 4
    table, data = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in sorted(entries):
        if len(value) <= 4:
            table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
        else:
            table += struct.pack("<HHII", tag, kind, count, after + len(data))
            data += value + b"\0" * (len(value) % 2)
    return b"II*\0" + struct.pack("<I", at) + pixels.ljust(at - 8, b"\0") + table + bytes(4) + data


@cache
def ppm(comment: int = 60_000_000) -> bytes:
    """A picture behind a comment."""
    return b"P6\n#" + b"x" * comment + b"\n2 2\n255\n" + bytes(12)


# Attacks.


async def scans_attack(us: Attacker) -> None:
    """Progressive JPEGs with 20,000 empty scans, from callers who leave."""
    await us.again(4, lambda: itertools.repeat(post("/embed", scans(), "image/jpeg")), leave_s=1.0)


async def bombs_attack(us: Attacker) -> None:
    """Small files of large or dear pictures: 16-bit PNG, float TIFF, tiny tiles, comments, rationals."""
    files = [
        (png16(), "image/png"),
        (tiff(8192, 8192), "image/tiff"),
        (tiff(2048, 2048, tile=1), "image/tiff"),
        (ppm(), "image/x-portable-pixmap"),
        (tiff(16, 16, extra=7_000_000), "image/tiff"),
    ]
    requests = [post("/embed", file, kind) for file, kind in files]
    await us.again(4, lambda: itertools.cycle(requests))


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


async def templates_attack(us: Attacker) -> None:
    """A template of 2,048 slots, and long texts."""
    body = _json(images=[_PICTURE], texts=["x" * 4000 + str(n) for n in range(16)], templates=["{}" * 2048])
    await us.again(4, lambda: itertools.repeat(post("/similarity", body, "application/json")))


async def words_attack(us: Attacker) -> None:
    """Texts of one long word each."""
    rng = random.Random(0)

    def bodies() -> Iterator[bytes]:
        while True:
            words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=4000)) for _ in range(60)]
            yield post("/similarity", _json(images=[_PICTURE], texts=words), "application/json")

    await us.again(4, bodies, leave_s=5.0)


async def plans_attack(us: Attacker) -> None:
    """Tables of 16 sizes in three dtypes, twenty at once, and ever new sizes of images."""
    new = itertools.count(1)

    def tables() -> Iterator[bytes]:
        while True:
            k = next(new)
            sizes = ",".join(f"{16 * (1 + k % 31)}x{16 * (1 + n)}" for n in range(16))
            yield get(f"/vram?resolution={sizes}&dtype=float32,float16,bfloat16&batch=1")

    def images() -> Iterator[bytes]:
        while True:
            k = next(new)
            size = f"{16 * (1 + k % 61)}x{16 * (1 + k // 61 % 61)}"
            yield post(f"/embed?resolution={size}&output=pooled", _PNG, "image/png")

    await asyncio.gather(us.again(20, tables, leave_s=2.0), us.again(20, images, leave_s=2.0))


async def uploads_attack(us: Attacker) -> None:
    """Forty uploads of 64 MiB that never end."""
    length = 64 * 2**20
    first = head("/embed", length, "image/jpeg") + bytes(length - 2**20)

    async def upload() -> None:
        while us.left_s > 0:
            await us.trickle(first, b"\0", every_s=0.5)

    await asyncio.gather(*(upload() for _ in range(40)))


async def names_attack(us: Attacker) -> None:
    """JSON whose names and values have 60 MB."""
    long = "x" * 60_000_000
    bodies = [_json(images=[_PICTURE], **{long: 1}), _json(images=[_PICTURE], output=long)]
    requests = [post("/embed", body, "application/json") for body in bodies]
    await us.again(2, lambda: itertools.cycle(requests))


async def connections_attack(us: Attacker) -> None:
    """Endless headers, silence, slow bodies, and answers that nobody reads: a hundred connections of each."""
    unread = head("/embed?output=tokens", len(_PNG), "image/png").replace(b"Connection: close\r\n", b"") + _PNG

    async def each(first: bytes, piece: bytes, every_s: float) -> None:
        while us.left_s > 0:
            await us.trickle(first, piece, every_s=every_s)
            await asyncio.sleep(0.1)

    await asyncio.gather(
        *(each(b"GET / HTTP/1.1\r\nX: ", b"a" * 1000, 0.05) for _ in range(100)),
        *(each(b"", b"", 1.0) for _ in range(100)),
        *(each(head("/embed", 10_000_000, "image/png"), b"a", 0.5) for _ in range(100)),
        *(each(unread * 100, b"", 1.0) for _ in range(100)),
    )


async def answers_attack(us: Attacker) -> None:
    """The most tokens that an answer can have, as JSON."""
    sizes = itertools.cycle(["1024", "512", "2048"])
    boundary = "b"
    part = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    ).encode()
    form = (part + _PNG + b"\r\n") * 8 + f"--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    await us.again(4, lambda: (post(f"/embed?resolution={size}", form, kind) for size in sizes))


async def vanish_attack(us: Attacker) -> None:
    """Good, bad and huge pictures, from callers who leave in the middle of an upload or of an answer."""
    rng = random.Random(0)

    def requests() -> Iterator[bytes]:
        while True:
            body = rng.choice([_PNG, _PNG[:40], b"", b"GIF89a" + bytes(50), png16()])
            whole = post(f"/embed?output={rng.choice(['tokens', 'pooled', 'both', 'all'])}", body, "image/png")
            yield whole if rng.random() < 0.5 else whole[: rng.randrange(1, len(whole))]

    await us.again(16, requests, leave_s=0.2)


def _picture() -> bytes:
    """A grey PNG of 64 x 64."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 64).convert("RGB").save(file, "PNG")
    return file.getvalue()


_PNG = _picture()
_PICTURE = base64.b64encode(_PNG).decode()

ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    name.removesuffix("_attack"): attack for name, attack in list(globals().items()) if name.endswith("_attack")
}
"""By name."""


def main() -> None:
    """One attack."""
    parser = argparse.ArgumentParser("python -m benchmarks.attacks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("attack", nargs="?", choices=ATTACKS)
    parser.add_argument("--port", type=int)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--list", action="store_true", help="name them")
    given = parser.parse_args()
    if given.list or given.attack is None or given.port is None:
        print("\n".join(f"{name:12} {attack.__doc__}" for name, attack in ATTACKS.items()))
        sys.exit(0 if given.list else 2)

    async def run() -> Ends:
        us = Attacker(given.port, given.seconds)
        await ATTACKS[given.attack](us)
        return us.ends

    os.nice(19)
    print(json.dumps(asyncio.run(run())))


if __name__ == "__main__":
    main()
