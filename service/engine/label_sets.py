"""Named sets of labels: embedded once for all requests, however many prompts they have, and kept."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np

from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Floats
from service.engine.admission import Admission
from service.engine.models import Models
from service.engine.origin import Origin
from service.engine.postprocess import l2_normalize
from service.engine.scoring import PromptLimits, TextVectors
from service.engine.text_cache import text_origin
from service.engine.texts import Texts
from service.errors import (
    HostMemoryFull,
    InvalidOption,
    LabelsNotReady,
    Overloaded,
    ShuttingDown,
    TextTooLong,
    shown,
)
from service.memory.planner import Planner
from service.telemetry.tracing import TRACE

_log = logging.getLogger(__name__)
_FULL_S = 0.5
"""Labels wait so long where requests have filled the queue of texts, or the memory."""
_LONGEST_RETRY_S = 60
_UNKNOWN_RETRY_S = 10
"""Where no label has been embedded yet, so that there is no pace."""

Key: TypeAlias = tuple[str, str, tuple[str, ...]]
"""Model, set and templates."""


@dataclass(frozen=True)
class KnownLabels:
    """A set's vectors. origin: the weights and templates that they are of. vectors: of length 1."""

    name: str
    origin: Origin
    vectors: TextVectors

    prompts: ClassVar[int] = 0
    nbytes: ClassVar[int] = 0
    """As of WantedTexts: nothing is left to do."""

    def of(self, spec: EncoderSpec, templates: Sequence[str], *, truncate: bool) -> TextVectors:
        """The vectors, if they are of these weights.

        Raises TextTooLong for labels that were cut if not `truncate`, LabelsNotReady if other weights have been loaded
        since.
        """
        if text_origin(spec, templates) != self.origin:
            raise LabelsNotReady(self.name, done=0, number=len(self.vectors.tokens), retry_after_s=1)
        if self.vectors.truncated and not truncate:
            too_long = {index: self.vectors.tokens[index] for index in self.vectors.truncated}
            raise TextTooLong(model=spec.id, tokens=too_long, context_length=spec.context_length or 0)
        return self.vectors


@dataclass
class _Work:
    """On one set. vectors, tokens, truncated: as of KnownLabels, of the labels that are done, from the first on."""

    origin: Origin
    started: float
    vectors: list[Floats] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    task: "asyncio.Task[KnownLabels] | None" = None

    def add(self, found: TextVectors) -> None:
        """The next labels."""
        self.truncated += [len(self.tokens) + index for index in found.truncated]
        self.tokens += found.tokens
        self.vectors.append(l2_normalize(found.vectors))

    @property
    def done(self) -> int:
        """How many labels."""
        return len(self.tokens)

    def retry_after_s(self, labels: int, *, now: float) -> int:
        """Until all will be done, at the pace so far."""
        if not self.done:
            return _UNKNOWN_RETRY_S
        left = (labels - self.done) * (now - self.started) / self.done
        return max(1, min(_LONGEST_RETRY_S, math.ceil(left)))


class LabelSets:
    """Embeds a set when it is first asked for, behind what requests ask for. Lives on the event loop.

    most_prompts: in one go, of which the templates must be a part.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[str]],
        *,
        models: Models,
        planner: Planner,
        texts: Texts,
        admission: Admission,
        most_prompts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sets = sets
        self._models = models
        self._planner = planner
        self._texts = texts
        self._admission = admission
        self._most_prompts = most_prompts
        self._clock = clock
        self._work: dict[Key, _Work] = {}

    def labels(self, name: str) -> Sequence[str]:
        """Raises InvalidOption for a name that no set has."""
        found = self._sets.get(name)
        if found is None:
            known = ", ".join(self._sets) or "none: start the server with --labels NAME=FILE"
            raise InvalidOption("labels", f"There is no set of labels '{shown(name)}'. There is: {known}.")
        return found

    async def known(self, name: str, templates: tuple[str, ...], *, model: str, wait_s: float) -> KnownLabels:
        """The set's vectors for the weights that the model has now.

        The first request begins the work, and it goes on if the request leaves. Where it has failed, the next request
        goes on with it. Raises LabelsNotReady after `wait_s`, InvalidOption, ShuttingDown, or what the work raises.
        """
        labels = self.labels(name)
        async with self._models.using(model) as resident:  # it may have been evicted, and come back with other weights
            origin = text_origin(resident.spec, templates)
        work = self._work.get((model, name, templates))
        if work is None or work.origin != origin:
            work = self._work[model, name, templates] = _Work(origin, self._clock())
        task = work.task
        if task is None or _has_failed(task):
            task = work.task = asyncio.create_task(self._embed(work, name, templates, model=model))
            task.add_done_callback(_log_failure)
        if not task.done():
            await asyncio.wait([task], timeout=wait_s if wait_s < math.inf else None)
        if not task.done():
            raise LabelsNotReady(
                name,
                done=work.done,
                number=len(labels),
                retry_after_s=work.retry_after_s(len(labels), now=self._clock()),
            )
        if task.cancelled():
            raise ShuttingDown
        return task.result()

    async def _embed(self, work: _Work, name: str, templates: tuple[str, ...], *, model: str) -> KnownLabels:
        TRACE.set(None)  # it is for all requests, and may outlast the one that began it
        labels = self._sets[name]
        limits = PromptLimits(prompts=self._most_prompts, chars=2**63, all_chars=2**63)  # the operator's own words
        step = self._most_prompts // len(templates)
        while work.done < len(labels):
            piece = labels[work.done : work.done + step]
            try:
                wanted = self._texts.wanted(piece, templates, self._models.specs[model], limits=limits)
                with self._admission.admit(images=0, texts=wanted.prompts), self._texts.hold(wanted.nbytes):
                    shape = await self._planner.text_shape(model)
                    async with self._models.using(model, shape) as resident:
                        if text_origin(resident.spec, templates) != work.origin or wanted.origin != work.origin:
                            raise LabelsNotReady(name, done=0, number=len(labels), retry_after_s=1)
                        tokenized = await self._texts.tokenize(wanted, resident=resident, truncate=True)
                        found = await self._texts.embed(
                            tokenized, resident=resident, shape=shape, deadline=math.inf, keep=False
                        )
            except (Overloaded, HostMemoryFull):
                await asyncio.sleep(_FULL_S)
            else:
                work.add(found)
        unit = np.concatenate(work.vectors)
        work.vectors.clear()
        return KnownLabels(name, work.origin, TextVectors(unit, work.tokens, work.truncated, is_unit=True))

    def stop(self) -> None:
        """Embed no further; who waits for it is answered with ShuttingDown."""
        for work in self._work.values():
            if work.task is not None:
                work.task.cancel()

    async def stopped(self) -> None:
        """Wait until nothing is embedded any more."""
        tasks = [work.task for work in self._work.values() if work.task is not None]
        if tasks:
            await asyncio.wait(tasks)


def _has_failed(task: "asyncio.Task[KnownLabels]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _log_failure(task: "asyncio.Task[KnownLabels]") -> None:
    """Heard also if every request has left."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a set of labels could not be embedded: %s", error)
