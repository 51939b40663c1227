"""Whatever a caller hands over -> parcels of a request's size: images as bytes, and texts."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sized
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from visiontower_client.errors import BadImage
from visiontower_client.images import bytes_of, is_one, require_words

Inputs: TypeAlias = Any
"""One input or many: in a list, another iterable, or an asynchronous one.

An input is a text (str), or an image: a pathlib.Path, the bytes of a file, a file opened for reading bytes, a Pillow
image, or a NumPy array of uint8 [height, width, 3]. An array of uint8 [n, height, width, 3] is n images.
"""
_MOST_BYTES = 32 * 2**20
"""Of the images of one request, unless the first alone has more: half of what a server takes by default."""


@dataclass(frozen=True)
class Chunk:
    """Inputs as they came, in a list or an array. start: index of the first."""

    start: int
    items: Any


@dataclass
class Parcel:
    """What goes into one request. image_at, text_at: indices among the inputs. end: of those that were taken."""

    images: list[bytes] = field(default_factory=list)
    image_at: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    text_at: list[int] = field(default_factory=list)
    unreadable: list[BadImage] = field(default_factory=list)
    end: int = 0

    def __len__(self) -> int:
        return len(self.images) + len(self.texts)


@dataclass(frozen=True)
class Packing:
    """How inputs become parcels. shrink_to: (height, width) that the encoder sees. texts: whether they are taken."""

    shrink_to: tuple[int, int] | None = None
    texts: bool = True

    async def parcels(self, chunk: Chunk) -> AsyncGenerator[Parcel, None]:
        """One after the other, so that no more is in memory than a request holds. Raises as `parcel`."""
        at_hand = self.shrink_to is None and all(isinstance(item, str | bytes) for item in chunk.items)
        begin = 0
        while begin < len(chunk.items):
            taken = self.parcel(chunk, begin) if at_hand else await asyncio.to_thread(self.parcel, chunk, begin)
            begin = taken.end
            yield taken

    def parcel(self, chunk: Chunk, begin: int) -> Parcel:
        """The inputs from there on that fit one request. Raises TypeError or ValueError, with the input's index."""
        parcel, size = Parcel(), 0
        for place in range(begin, len(chunk.items)):
            item, index = chunk.items[place], chunk.start + place
            try:
                if isinstance(item, str):
                    parcel.texts.append(self._text(item))
                    parcel.text_at.append(index)
                else:
                    content = bytes_of(item, shrink_to=self.shrink_to)
                    parcel.images.append(content)
                    parcel.image_at.append(index)
                    size += len(content)
            except BadImage as error:
                error.index = index
                parcel.unreadable.append(error)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError  # theirs may need more to be made
                raise kind(f"input {index}: {error}") from error
            parcel.end = place + 1
            if size >= _MOST_BYTES:
                break
        return parcel

    def _text(self, text: str) -> str:
        if not self.texts:
            shown = text if len(text) <= 60 else f"{text[:60]}..."
            raise TypeError(f"{shown!r} is a str, so it is a text, and only images go here: pass a pathlib.Path.")
        return require_words(text)


def number_of(inputs: Inputs) -> int | None:
    """How many inputs, if that is known beforehand."""
    if is_one(inputs):
        return 1
    return len(inputs) if isinstance(inputs, Sized) else None


async def chunks(inputs: Inputs, size: int) -> AsyncGenerator[Chunk, None]:
    """Inputs in order. A generator is run by one thread beside the event loop, which it may hold up as it likes.

    Raises TypeError for what is no input and has none.
    """
    if size < 1:
        raise ValueError(f"batch is {size}: a request has at least one input.")
    if is_one(inputs):
        yield Chunk(0, [inputs])
    elif isinstance(inputs, list | tuple | np.ndarray):
        for start in range(0, len(inputs), size):
            yield Chunk(start, inputs[start : start + size])
    elif isinstance(inputs, AsyncIterable):
        start, items = 0, []
        async for item in inputs:
            items.append(item)
            if len(items) == size:
                yield Chunk(start, items)
                start, items = start + size, []
        if items:
            yield Chunk(start, items)
    elif isinstance(inputs, Iterable):
        async for chunk in _in_thread(iter(inputs), size):
            yield chunk
    else:
        raise TypeError(f"{type(inputs).__name__} is neither an image nor a text, nor several of them.")


async def _in_thread(items: Iterator[Any], size: int) -> AsyncGenerator[Chunk, None]:
    """The thread is a daemon: a source that never gives its next item does not keep the program from its end."""
    wanted: queue.SimpleQueue[Future[list[Any]] | None] = queue.SimpleQueue()

    def take() -> None:
        while (taken := wanted.get()) is not None:
            if taken.set_running_or_notify_cancel():
                try:
                    taken.set_result(list(islice(items, size)))
                except BaseException as error:
                    taken.set_exception(error)

    threading.Thread(target=take, name="visiontower-inputs", daemon=True).start()
    start = 0
    try:
        while True:
            future: Future[list[Any]] = Future()
            wanted.put(future)
            taken = await asyncio.wrap_future(future)
            if not taken:
                return
            yield Chunk(start, taken)
            start += len(taken)
    finally:
        wanted.put(None)
