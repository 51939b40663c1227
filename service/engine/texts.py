"""Texts to vectors: known ones at once; the others are tokenised on a thread of their own, then batched like images."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, VisiontowerError
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Floats, TokenIds, Tokenized
from service.engine.origin import Origin
from service.engine.postprocess import require_finite
from service.engine.scoring import PromptLimits, Prompts, TextVectors, Unfilled
from service.engine.text_cache import KnownText, TextCache, text_origin
from service.errors import TextTooLong
from service.line import Line
from service.memory.account import Account, Hold
from service.memory.shape import TextShape
from service.scheduling.device_threads import DeviceThreads
from service.scheduling.resident import Resident
from service.telemetry.tracing import TRACE, UNTRACED

_log = logging.getLogger(__name__)

_PIECE_CHARS = 4096
"""Prompts are tokenised so many characters at a time, or one prompt: some milliseconds, rarely some tens."""
_PROMPT_CHARS = 32
"""What a prompt costs beside its own characters."""
_INLINE_CHARS = 65_536
"""Up to so many characters of prompts are written out on the event loop."""


@dataclass(frozen=True)
class WantedTexts:
    """Texts within the limits, and what is known of them. missing: the others, each once; None if there are none.

    known: by text. origin: of the vectors: the weights that it was looked up for, and the templates. is_set: none was
    looked up, and their forwards are shared with nobody else.
    """

    texts: Sequence[str]
    templates: Sequence[str]
    known: dict[str, KnownText]
    missing: Unfilled | None
    origin: Origin
    context_length: int
    is_set: bool = False

    @property
    def prompts(self) -> int:
        """How many must go through the tower."""
        return 0 if self.missing is None else len(self.missing)

    @property
    def nbytes(self) -> int:
        """Host memory for them, at most."""
        return 0 if self.missing is None else self.missing.nbytes(self.context_length)


@dataclass(frozen=True)
class _Tokenized:
    """missing: the texts that were not known, their prompts and ids. tokens, truncated: as of TextVectors."""

    wanted: WantedTexts
    missing: tuple[Sequence[str], Prompts, TokenIds] | None
    tokens: Sequence[int]
    truncated: Sequence[int]


class Texts:
    """Takes texts through their stages. pool: where long prompts are written out."""

    def __init__(
        self,
        *,
        threads: DeviceThreads,
        account: Account,
        cache: TextCache,
        limits: PromptLimits,
        pool: Executor,
    ) -> None:
        self._threads = threads
        self._account = account
        self._cache = cache
        self._limits = limits
        self._pool = pool
        self._line = Line("tokenize")

    def wanted(
        self,
        texts: Sequence[str],
        templates: Sequence[str],
        spec: EncoderSpec,
        *,
        limits: PromptLimits | None = None,
        is_set: bool = False,
    ) -> WantedTexts:
        """Check the texts, and look up which are known. limits: other than a request's. is_set: of EmbedRequest.

        Raises OutputNotOffered without a text tower, NoTexts, TooManyTexts, InvalidOption, PromptTooLong or
        TooMuchText.
        """
        spec.require_text()
        limits = limits or self._limits
        unfilled = Unfilled.of(texts, templates, limits)
        origin = text_origin(spec, templates)
        known: dict[str, KnownText] = {}
        missing: dict[str, None] = {}
        for text in texts:
            if text in known or text in missing:
                continue
            found = None if is_set else self._cache.get(origin, text)
            if found is None:
                missing[text] = None
            else:
                known[text] = found
        if missing and len(missing) < len(texts):
            unfilled = Unfilled.of(list(missing), templates, limits)
        context_length = spec.context_length or 0
        return WantedTexts(texts, templates, known, unfilled if missing else None, origin, context_length, is_set)

    def hold(self, nbytes: int) -> Hold:
        """Host memory for what has to be embedded. Raises HostMemoryFull or OverHostMemory."""
        return self._account.hold("text", nbytes)

    async def tokenize(self, wanted: WantedTexts, *, resident: Resident, truncate: bool) -> _Tokenized:
        """What `embed` takes. Raises TextTooLong if not `truncate`, or InvalidText."""
        if wanted.origin != text_origin(resident.spec, wanted.templates):  # other weights have been loaded meanwhile
            wanted = self.wanted(wanted.texts, wanted.templates, resident.spec, is_set=wanted.is_set)
        lengths = {text: each.tokens for text, each in wanted.known.items()}
        missing = None
        if wanted.missing is not None:
            prompts = await self._filled(wanted.missing)
            trace = TRACE.get()
            with trace.stage("tokenize") if trace else UNTRACED:
                ids, of_prompts = await self._ids(prompts, resident=resident)
            missing = wanted.missing.texts, prompts, ids
            lengths.update(zip(wanted.missing.texts, prompts.tokens(of_prompts), strict=True))
        in_order = [lengths[text] for text in wanted.texts]
        context_length = resident.spec.context_length or 0
        too_long = {index: tokens for index, tokens in enumerate(in_order) if tokens > context_length}
        if too_long and not truncate:
            raise TextTooLong(model=resident.spec.id, tokens=too_long, context_length=context_length)
        return _Tokenized(wanted, missing, in_order, list(too_long))

    async def embed(
        self,
        tokenized: _Tokenized,
        *,
        resident: Resident,
        shape: TextShape,
        deadline: float,
        keep: bool = True,
    ) -> TextVectors:
        """Vectors of the texts, in order. keep: those that were not known are from now on.

        Raises EncoderFailed, Unavailable or DeadlineExceeded.
        """
        wanted = tokenized.wanted
        vectors = {text: each.vector for text, each in wanted.known.items()}
        if tokenized.missing is not None:
            texts, prompts, ids = tokenized.missing
            embedded = await self._encode(ids, resident=resident, shape=shape, deadline=deadline, is_set=wanted.is_set)
            vectors.update(zip(texts, prompts.vectors(embedded), strict=True))
            for text, tokens in zip(wanted.texts, tokenized.tokens, strict=True):
                if keep and text not in wanted.known:
                    self._cache.put(wanted.origin, text, KnownText(vectors[text].copy(), tokens))
        in_order = np.stack([vectors[text] for text in wanted.texts])
        return TextVectors(in_order, tokenized.tokens, tokenized.truncated)

    async def _filled(self, unfilled: Unfilled) -> Prompts:
        if unfilled.chars <= _INLINE_CHARS:
            return unfilled.fill()
        return await asyncio.get_running_loop().run_in_executor(self._pool, unfilled.fill)

    async def _ids(self, prompts: Prompts, *, resident: Resident) -> tuple[TokenIds, NDArray[np.int64]]:
        """Ids [prompts, context_length] of the unique prompts, and their whole lengths. Raises InvalidText.

        Piece by piece: a request with less text goes before the next piece, and no further piece is begun for one that
        has left.
        """
        rank = (sum(map(_price, prompts.unique)),)
        work = partial(_ids_of, resident.encoder)
        found = [await self._line.put(partial(work, piece), rank=rank).answer for piece in _pieces(prompts.unique)]
        ids = found[0].ids if len(found) == 1 else np.concatenate([piece.ids for piece in found])
        return ids, np.concatenate([piece.lengths for piece in found])

    async def _encode(
        self, ids: TokenIds, *, resident: Resident, shape: TextShape, deadline: float, is_set: bool
    ) -> Floats:
        """Embeddings float32 [prompts, embed_dim], not normalised, of ids [prompts, context_length].

        Raises EncoderFailed, Unavailable or DeadlineExceeded.
        """
        trace = TRACE.get()
        if is_set:
            futures = self._threads.submit_set(resident, shape, list(ids), deadline=deadline, trace=trace)
        else:
            futures = [self._threads.submit(resident, shape, row, deadline=deadline, trace=trace) for row in ids]
        try:
            answers = await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
        vectors: Floats = np.stack([answer.row for answer in answers]).astype(np.float32)
        require_finite(vectors, model=shape.model)
        return vectors

    def close(self) -> None:
        """Take no more texts."""
        self._line.close()


def _ids_of(encoder: Encoder, prompts: Sequence[str]) -> Tokenized:
    """The prompts' ids. On the line's thread. Raises VisiontowerError, whatever a library raised."""
    spec = encoder.spec
    ids_of_all, lengths_of_all = (len(prompts), spec.context_length), (len(prompts),)
    try:
        found = encoder.tokenize(prompts)
        fits = (found.ids.shape, found.lengths.shape) == (ids_of_all, lengths_of_all) and found.ids.dtype == np.int64
    except VisiontowerError:
        raise
    except BaseException as error:  # a tokenizer in Rust may panic
        _log.exception("texts could not be tokenised")
        raise EncoderFailed(f"{spec.id} could not tokenise the texts.", model=spec.id) from error
    if not fits:
        expected = f"int64 ids {ids_of_all} and lengths {lengths_of_all}"
        raise EncoderFailed(f"{spec.id} did not tokenise the texts to {expected}.", model=spec.id)
    return found


def _price(prompt: str) -> int:
    return len(prompt) + _PROMPT_CHARS


def _pieces(prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbours together, up to the price of a piece."""
    begin = price = 0
    for index, prompt in enumerate(prompts):
        if index > begin and price + _price(prompt) > _PIECE_CHARS + _PROMPT_CHARS:
            yield prompts[begin:index]
            begin, price = index, 0
        price += _price(prompt)
    yield prompts[begin:]
