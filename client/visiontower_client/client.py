"""AsyncClient: images and texts in, arrays out."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, Self, TypeVar, Unpack, get_args, overload
from urllib.parse import quote, urlencode

import httpx
import numpy as np

from visiontower_client import answers
from visiontower_client.errors import BadImage, LimitExceeded, ServerFailed, VisiontowerError, of_response
from visiontower_client.form import fields_of, form, templates_of
from visiontower_client.images import require_pillow
from visiontower_client.inputs import Chunk, Inputs, Packing, Parcel, chunks, number_of
from visiontower_client.progress import Progress, progress_of
from visiontower_client.values import (
    Array,
    Both,
    Embedding,
    Errors,
    Label,
    Options,
    Output,
    Ready,
    Resolution,
    Similarity,
)
from visiontower_client.window import in_window
from visiontower_client.wire import MOST_BYTES, Wire, json_of, reading

BATCH = 16
"""Images or texts in one request."""
_OF_ONE = (BadImage, LimitExceeded, ServerFailed)
"""Errors of a request that are those of its input, if it has only one."""


class _Item(Protocol):
    """One image or text of an answer."""

    @property
    def index(self) -> int: ...
    @property
    def error(self) -> VisiontowerError | None: ...


I = TypeVar("I", bound=_Item)  # noqa: E741  # one letter, as type variables are


class AsyncClient:
    """A server of visiontower, for asynchronous programs; Client is the same for others.

    url: of the server. api_key: its access key, if it wants one. timeout: seconds that the server may be silent; a try
    of a request may last four times as long. in_flight: requests that are prepared or under way at once, over as many
    connections, by all calls together. retries: further tries when the server is overloaded or cannot be reached, or a
    gateway has lost the request; after the wait that it asks for. max_answer_bytes: of one answer; a larger one is an
    error. transport: httpx's, in place of sockets.

    Whatever fails raises a VisiontowerError. Use it in `async with`, or call `close`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 90.0,
        in_flight: int = 8,
        retries: int = 6,
        max_answer_bytes: int = MOST_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._in_flight = in_flight
        self._wire = Wire(
            url,
            api_key=api_key,
            timeout=timeout,
            in_flight=in_flight,
            retries=retries,
            max_answer_bytes=max_answer_bytes,
            transport=transport,
        )
        self._sizes: dict[str | None, tuple[int, int]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    @overload
    async def embed(
        self,
        inputs: Inputs,
        *,
        output: Literal["pooled", "tokens"] = "pooled",
        errors: Literal["raise"] = "raise",
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        **options: Unpack[Options],
    ) -> Array: ...
    @overload
    async def embed(
        self,
        inputs: Inputs,
        *,
        output: Literal["both"],
        errors: Literal["raise"] = "raise",
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        **options: Unpack[Options],
    ) -> Both: ...
    @overload
    async def embed(
        self,
        inputs: Inputs,
        *,
        output: Output = "pooled",
        errors: Literal["return"],
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        **options: Unpack[Options],
    ) -> list[Embedding]: ...
    async def embed(
        self,
        inputs: Inputs,
        *,
        output: Output = "pooled",
        errors: Errors = "raise",
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        **options: Unpack[Options],
    ) -> Array | Both | list[Embedding]:
        """Vectors of images and texts, in one array and in order.

        A str is a text. An image is a pathlib.Path, the bytes of a file, an open file, a Pillow image, or uint8
        [height, width, 3]. Several come in a list, or in any iterable, an asynchronous one too.

        output: `pooled` gives [n, width], in the joint space of images and texts where the model has one. `tokens`
        gives [n, tokens, width], of images only; `both` gives the two. errors: `raise` the first, or `return` a list
        of Embedding, of which those that failed have an `error`. batch: inputs in a request; it goes when they are
        there. progress: True for a bar, or a function of (done, total). options: see Options.

        shrink: make photographs as small as the encoder sees them before they are sent (JPEG of quality 95): opaque
        RGB and grey images whose every side is longer. It saves the network, and costs this machine the decoding. A
        vector is then not quite the same: see docs/client.md.

        Raises VisiontowerError; ValueError or TypeError, before anything is sent of that batch, for what is no input.
        """
        running = self.embed_lists(
            inputs, output=output, errors=errors, batch=batch, progress=progress, shrink=shrink, **options
        )
        found = [item async for items in running for item in items]
        if errors == "return":
            return found
        if not found:
            raise ValueError("There is nothing to embed: no image and no text.")
        if output == "pooled":
            return _stacked([item.pooled for item in found])
        tokens = _stacked([item.tokens for item in found])
        return tokens if output == "tokens" else Both(_stacked([item.pooled for item in found]), tokens)

    async def embed_iter(
        self,
        inputs: Inputs,
        *,
        output: Output = "pooled",
        ordered: bool = True,
        errors: Errors = "raise",
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Embedding, None]:
        """As `embed`, one Embedding after the other, while others are under way. Holds no more than a window of them.

        ordered: in the order of the inputs, or as they come: `index` says which each one is.
        """
        running = self.embed_lists(
            inputs,
            output=output,
            ordered=ordered,
            errors=errors,
            batch=batch,
            progress=progress,
            shrink=shrink,
            **options,
        )
        try:
            async for found in running:
                for item in found:
                    yield item
        finally:
            await running.aclose()

    async def embed_lists(
        self,
        inputs: Inputs,
        *,
        output: Output = "pooled",
        ordered: bool = True,
        errors: Errors = "raise",
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        **options: Unpack[Options],
    ) -> AsyncGenerator[list[Embedding], None]:
        """As `embed_iter`, a list for each request."""
        _require_one_of("output", output, get_args(Output))
        query = _query(options, output=output)
        if options.get("tiles"):
            batch = 1  # views differ in number, so tokens of two images cannot stand in one array

        async def send(parcel: Parcel) -> list[Embedding]:
            body = form(parcel.images, [("text", text) for text in parcel.texts])
            response = await self._wire.post(f"/embed{query}", body, accept="application/vnd.safetensors")
            return answers.embeddings(response, output=output, images=parcel.image_at, texts=parcel.text_at)

        if shrink and options.get("tiles"):
            raise ValueError("With tiles=True the encoder sees more than its own size: shrink=True has no place.")
        needed = await self._needed(options.get("model"), options.get("resolution")) if shrink else None
        running = self._all(
            inputs,
            Packing(needed, texts=output == "pooled"),
            send,
            lambda error, index: Embedding(index, error=error),
            ordered=ordered,
            errors=errors,
            batch=batch,
            progress=progress,
        )
        try:
            async for found in running:
                yield found
        finally:
            await running.aclose()

    async def similarity(
        self,
        images: Inputs,
        texts: Sequence[str],
        *,
        templates: Sequence[str] | str = (),
        heatmap: bool = False,
        errors: Errors = "raise",
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        model: str | None = None,
        resolution: Resolution | None = None,
        truncate: bool = True,
    ) -> Similarity:
        """Every image against every text: cosines, logits and probabilities, [images, texts] each.

        templates: each with {} where the text goes, or the name of the server's own, such as "openai"; a text's vector
        is the mean over them. heatmap: the cosine of every patch with every text. errors: with `return`, the rows of
        images that failed are NaN, and `errors` of the answer has why. Other options and errors as of `embed`.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        fields = fields_of("text", texts) + templates_of(templates)
        query = _query({"model": model, "resolution": resolution, "heatmap": heatmap, "truncate": truncate})

        async def send(parcel: Parcel) -> list[answers.Scores]:
            response = await self._wire.post(f"/similarity{query}", form(parcel.images, fields))
            return answers.scores(response, images=parcel.image_at, texts=len(texts), has_heatmaps=heatmap)

        packing = Packing(await self._needed(model, resolution) if shrink else None, texts=False)
        found = await self._gathered(
            images,
            packing,
            send,
            lambda error, index: answers.Scores(index, None, error=error),
            errors=errors,
            batch=batch,
            progress=progress,
        )
        return answers.similarity(found, texts=len(texts), has_heatmaps=heatmap)

    @overload
    async def classify(
        self,
        images: Inputs,
        labels: Sequence[str] | str,
        *,
        templates: Sequence[str] | str = ...,
        top_k: int = ...,
        errors: Literal["raise"] = "raise",
        batch: int = ...,
        progress: Progress = ...,
        shrink: bool = ...,
        model: str | None = ...,
        resolution: Resolution | None = ...,
        truncate: bool = ...,
    ) -> list[list[Label]]: ...
    @overload
    async def classify(
        self,
        images: Inputs,
        labels: Sequence[str] | str,
        *,
        templates: Sequence[str] | str = ...,
        top_k: int = ...,
        errors: Literal["return"],
        batch: int = ...,
        progress: Progress = ...,
        shrink: bool = ...,
        model: str | None = ...,
        resolution: Resolution | None = ...,
        truncate: bool = ...,
    ) -> list[list[Label] | VisiontowerError]: ...
    async def classify(
        self,
        images: Inputs,
        labels: Sequence[str] | str,
        *,
        templates: Sequence[str] | str = (),
        top_k: int = 5,
        errors: Errors = "raise",
        batch: int = BATCH,
        progress: Progress = False,
        shrink: bool = False,
        model: str | None = None,
        resolution: Resolution | None = None,
        truncate: bool = True,
    ) -> list[list[Label]] | list[list[Label] | VisiontowerError]:
        """The likeliest labels of every image, best first.

        labels: a list, or the name (a str) of a set that the server was started with (`--labels NAME=FILE`).
        templates: as of `similarity`; the server's default is "a photo of a {}.". top_k: labels an image. errors: with
        `return`, an image that failed has its error in place of its labels. Other options and errors as of `embed`.
        """
        named = [("labels", labels)] if isinstance(labels, str) else fields_of("label", labels)
        fields = named + templates_of(templates)
        query = _query({"model": model, "resolution": resolution, "top_k": top_k, "truncate": truncate})

        async def send(parcel: Parcel) -> list[answers.Classes]:
            response = await self._wire.post(f"/classify{query}", form(parcel.images, fields))
            return answers.classes(response, images=parcel.image_at)

        packing = Packing(await self._needed(model, resolution) if shrink else None, texts=False)
        found = await self._gathered(
            images,
            packing,
            send,
            lambda error, index: answers.Classes(index, error=error),
            errors=errors,
            batch=batch,
            progress=progress,
        )
        return [each.error or list(each.labels) for each in found]

    async def vram(
        self,
        model: str | None = None,
        *,
        resolution: Resolution | Sequence[Resolution] | None = None,
        batch: int | Sequence[int] | None = None,
        dtype: str | Sequence[str] | None = None,
        output: Output | None = None,
        layer: int | None = None,
    ) -> dict[str, Any]:
        """The memory of forwards, predicted: bytes, and the largest batch that fits. Runs nothing.

        Lists give a table: `data` has a row for each combination. A pair of numbers is a list here: give a size that is
        not square as "HxW".
        """
        wanted = {"model": model, "resolution": resolution, "batch": batch, "dtype": dtype, "output": output}
        listed = {
            name: value if value is None or isinstance(value, str | int) else ",".join(map(str, value))
            for name, value in {**wanted, "layer": layer}.items()
        }
        answer: dict[str, Any] = await self._wire.get(f"/vram{_query(listed)}")
        return answer

    async def models(self) -> list[dict[str, Any]]:
        """What is served, the default first: sizes, layers, dtype, revision, state and more of each."""
        answer = await self._wire.get("/models")
        models = answer.get("data")
        if not isinstance(models, list) or not models or not all(isinstance(each, dict) for each in models):
            raise ServerFailed("/models has answered something else than visiontower does.")
        return models

    async def model(self, model: str) -> dict[str, Any]:
        """One of `models`. Raises UnknownModel."""
        answer: dict[str, Any] = await self._wire.get(f"/models/{quote(model, safe='/:@')}")
        return answer

    async def ready(self, model: str | None = None) -> Ready:
        """Whether requests can be answered now: those for this model, or for every one. Tries once.

        Raises Unreachable if no server listens there.
        """
        response = await self._wire.once(f"/health/ready{_query({'model': model})}")
        if response.status_code not in (200, 503):
            raise of_response(response)
        answer = json_of(response)
        with reading(response):
            return Ready(response.status_code == 200, answer.get("reason"), dict(answer["models"]))

    async def _all(
        self,
        inputs: Inputs,
        packing: Packing,
        send: Callable[[Parcel], Awaitable[list[I]]],
        failed: Callable[[VisiontowerError, int], I],
        *,
        ordered: bool,
        errors: Errors,
        batch: int,
        progress: Progress,
    ) -> AsyncGenerator[list[I], None]:
        """All inputs in requests of `batch`; a list for each chunk of them, each by index."""
        _require_one_of("errors", errors, get_args(Errors))

        async def do(chunk: Chunk) -> list[I]:
            found: list[I] = []
            async with self._wire.slots:
                async for parcel in packing.parcels(chunk):
                    found += [failed(error, error.index or 0) for error in parcel.unreadable]
                    if parcel:
                        found += await _asked(parcel, send, failed)
            found.sort(key=lambda item: item.index)
            return found

        with progress_of(progress, number_of(inputs)) as tell:
            # Twice as many as are under way: one that is tried again does not keep those behind it from being sent.
            running = in_window(chunks(inputs, batch), do, window=2 * self._in_flight, ordered=ordered)
            try:
                async for found in running:
                    failures = [(place, item.error) for place, item in enumerate(found) if item.error is not None]
                    if failures and errors == "raise":
                        place, error = failures[0]
                        yield found[:place]
                        raise error
                    tell(len(found))
                    yield found
            finally:
                await running.aclose()

    async def _gathered(
        self,
        images: Inputs,
        packing: Packing,
        send: Callable[[Parcel], Awaitable[list[I]]],
        failed: Callable[[VisiontowerError, int], I],
        *,
        errors: Errors,
        batch: int,
        progress: Progress,
    ) -> list[I]:
        running = self._all(images, packing, send, failed, ordered=True, errors=errors, batch=batch, progress=progress)
        gathered = [item async for found in running for item in found]
        if not gathered:
            raise ValueError("There is no image.")
        return gathered

    async def _needed(self, model: str | None, resolution: Resolution | None) -> tuple[int, int]:
        """Height and width that the encoder sees. Raises ImportError if nothing can be shrunk here."""
        require_pillow()
        if resolution is not None:
            height, _, width = _size(resolution).lower().partition("x")
            try:
                return int(height), int(width or height)
            except ValueError as error:
                raise ValueError(f"resolution is N, 'HxW' or (H, W), and not {resolution!r}.") from error
        if model not in self._sizes:
            spec = (await self.models())[0] if model is None else await self.model(model)
            match spec.get("image_size"):
                case [int(rows), int(columns)] if rows > 0 and columns > 0:
                    self._sizes[model] = (rows, columns)
                case _:
                    raise ServerFailed("/models has answered something else than visiontower does: no image_size.")
        return self._sizes[model]


async def _asked(
    parcel: Parcel, send: Callable[[Parcel], Awaitable[list[I]]], failed: Callable[[VisiontowerError, int], I]
) -> list[I]:
    """The answer to a parcel. An error of several inputs says which; one of a single input is that input's."""
    indices = [*parcel.image_at, *parcel.text_at]
    try:
        return await send(parcel)
    except VisiontowerError as error:
        if len(indices) > 1:
            error.add_note(f"The request had the inputs {min(indices)} to {max(indices)}.")
            raise
        if isinstance(error, _OF_ONE):
            error.index = indices[0]
            return [failed(error, indices[0])]
        raise


def _query(options: Mapping[str, Any], **more: Any) -> str:
    """'?name=value&...' of the options that are given. Raises TypeError for a name that is none."""
    if more and (unknown := options.keys() - Options.__annotations__.keys()):
        known = ", ".join(Options.__annotations__)
        raise TypeError(f"There is no option {', '.join(map(repr, sorted(unknown)))}. Known: {known}.")
    given = {name: value for name, value in {**options, **more}.items() if value is not None}
    words = {name: str(value).lower() if isinstance(value, bool) else _size(value) for name, value in given.items()}
    return f"?{urlencode(words)}" if words else ""


def _size(value: Any) -> str:
    """(H, W) as HxW; anything else as it is written."""
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _require_one_of(name: str, given: object, known: tuple[str, ...]) -> None:
    """Raises ValueError for another value than the known ones."""
    if given not in known:
        raise ValueError(f"{name} is {given!r}: it is one of {', '.join(map(repr, known))}.")


def _stacked(arrays: Sequence[Array | None]) -> Array:
    """Raises ValueError if they differ in shape."""
    given = [array for array in arrays if array is not None]
    if len({array.shape for array in given}) > 1:
        raise ValueError(
            "The arrays differ in shape, so they cannot stand in one: use embed_iter, or errors='return', for a list."
        )
    return np.stack(given)
