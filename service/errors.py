"""The errors of the service, whichever way a request came. They carry facts; status codes are in http/problems.py.

VisiontowerError (encoders/contract/errors.py)
├── ImageError
│   ├── ImageUrlRefused        an image URL that may not be fetched here
│   ├── ImageFetchFailed       the URL was tried and gave no image
│   └── ImageUnreadable        the file cannot be read
├── RequestError
│   ├── InvalidOption          unknown name, wrong value, or two different ones
│   ├── NoImages               a request without an image
│   ├── NoTexts                a request without a text where it needs one
│   ├── WidthNotOffered        vectors of another width than the encoder's
│   ├── TextTooLong            a text past the context length, where none may be cut
│   └── NumbersDoNotFit        the dtype asked for cannot hold the values
├── UnknownModel               not one of the served encoders
├── ModelDoesNotFit            the encoder is too large for the memory budget
├── LimitExceeded              refused whole, before work is done
│   ├── TooManyTexts
│   ├── PromptTooLong          a text put into its template
│   ├── TooMuchText            all prompts of one request together
│   ├── AnswerTooLarge         more numbers than an answer in this format may have
│   ├── HeatmapTooLarge
│   ├── OverHostMemory         a stage of this request needs more than all requests together may hold
│   └── ImageDoesNotFit        a forward of this one image is over the memory budget
├── Unavailable                try again, here or elsewhere
│   ├── Overloaded             the queue is full
│   ├── HostMemoryFull         other requests hold the memory that this one needs
│   ├── ModelWaitsForRoom      the encoder is not loaded, and the loaded ones have been in use just now
│   ├── ModelFailed            the encoder could not be loaded, and it is too early to try again
│   ├── LabelsNotReady         a named set of labels is being embedded
│   ├── ShuttingDown           the service is draining
│   ├── DeviceHangs            a forward has taken far too long, and may never end
│   └── DeviceLost             the device thread has ended
└── DeadlineExceeded           no answer in time
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from encoders.contract.errors import ImageError, RequestError, VisiontowerError
from encoders.contract.values import ImageSize
from service.sizes import show_bytes

_SHOWN = 100
"""Characters of a caller's word that are shown again: it may have as many as a body has bytes."""
_SHOWN_ITEMS = 8

_NAMED = 20
"""Texts that one error names."""


def shown(word: str) -> str:
    """The beginning of a caller's word, to be named in an error."""
    return word if len(word) <= _SHOWN else f"{word[:_SHOWN]}..."


def shown_value(value: object) -> str:
    """The beginning of a caller's value as Python writes it. The value is cut first: writing a large one takes long."""
    if isinstance(value, str):
        return shown(repr(value[:_SHOWN]))
    if isinstance(value, list | tuple):
        items = ", ".join("[...]" if isinstance(item, list) else shown_value(item) for item in value[:_SHOWN_ITEMS])
        return shown(f"[{items}{', ...' if len(value) > _SHOWN_ITEMS else ''}]")
    return "an object" if isinstance(value, dict) else shown(repr(value))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean x?' for the closest known name, or nothing."""
    if len(name) > _SHOWN:
        return ""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


class ImageUrlRefused(ImageError):
    """The server does not fetch images from this URL: its host is not in the setting image_url_hosts."""

    def __init__(self, url: str, *, reason: str) -> None:
        super().__init__(f"The image URL is not fetched: {reason}.", url=shown(url))


class ImageFetchFailed(ImageError):
    """The image URL was tried, but gave no image: not found, too slow, too large, or a redirect."""

    def __init__(self, url: str, *, reason: str) -> None:
        super().__init__(f"The image URL could not be fetched: {reason}.", url=shown(url))


class ImageUnreadable(ImageError):
    """The image file cannot be read from this machine's disk."""

    def __init__(self, path: Path, *, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}.", path=str(path))
        self.reason = reason


class InvalidOption(RequestError):
    """An option has an unknown name or a value it cannot have, or was given twice with different values."""

    def __init__(self, option: str, message: str, **facts: object) -> None:
        super().__init__(message, option=shown(option), **facts)

    @classmethod
    def unknown(cls, name: str, known: Sequence[str], *, advice: str = "") -> "InvalidOption":
        """For a name that is no option. advice: in place of the nearest known name."""
        advice = advice or did_you_mean(name, known)
        message = f"Unknown option '{shown(name)}'.{advice} Known: {', '.join(known)}."
        return cls(name, message, known=list(known))


class NoImages(RequestError):
    """The request has no image: send a part named `image`, a raw body, or JSON with `images`."""

    def __init__(self, advice: str = "") -> None:
        super().__init__(f"There is no image in the request{advice}.")


class NoTexts(RequestError):
    """The request has no text, and needs at least one: send fields named `text`, or JSON with `texts`."""

    def __init__(self, advice: str = "") -> None:
        super().__init__(f"There is no text in the request{advice}.")


class WidthNotOffered(RequestError):
    """The request wants vectors of so many numbers, and the encoder was trained to give others."""

    def __init__(self, *, model: str, asked: int, width: int | None) -> None:
        super().__init__(
            f"{model} gives vectors of {width} numbers, not of {asked}: it was not trained for others.",
            model=model,
            asked=asked,
            width=width,
        )


class TextTooLong(RequestError):
    """A text has more tokens than the model reads, and the request forbids to cut it (`truncate=false`).

    texts: the indices of such texts; tokens: how many each has, with its template and the special tokens. The first 20.
    """

    def __init__(self, *, model: str, tokens: Mapping[int, int], context_length: int) -> None:
        named = dict(list(tokens.items())[:_NAMED])
        counts = ", ".join(f"text {index} has {number}" for index, number in named.items())
        more = f" and {len(tokens) - len(named)} more texts" if len(tokens) > len(named) else ""
        super().__init__(
            f"{model} reads {context_length} tokens of a text: {counts}{more}. "
            "Shorten them, or allow to cut them (truncate).",
            model=model,
            context_length=context_length,
            texts=list(named),
            tokens=list(named.values()),
        )


class NumbersDoNotFit(RequestError):
    """The values are too large for the dtype asked for; bfloat16 and float32 have the range."""

    def __init__(self, dtype: str) -> None:
        super().__init__(f"The values are too large for {dtype}; ask for float32 or bfloat16.", dtype=dtype)


class UnknownModel(VisiontowerError):
    """The server does not serve this encoder; the detail names those it does."""

    def __init__(self, model: str, *, served: Sequence[str]) -> None:
        hint = did_you_mean(model, served)
        super().__init__(
            f"'{shown(model)}' is not served here.{hint} Served: {', '.join(served) or 'none'}.",
            model=shown(model),
            served=list(served),
        )


class LimitExceeded(VisiontowerError):
    """More than the server takes in one request; nothing was done."""

    def __init__(self, message: str, *, actual: int | None, limit: int) -> None:
        facts = {"limit": limit} if actual is None else {"limit": limit, "actual": actual}
        super().__init__(message, **facts)


class TooManyTexts(LimitExceeded):
    """The request has more prompts (texts x templates) than the setting max_texts."""

    def __init__(self, *, actual: int, limit: int) -> None:
        super().__init__(
            f"{actual} prompts (texts x templates) in one request; the limit is {limit}.", actual=actual, limit=limit
        )


class PromptTooLong(LimitExceeded):
    """A text put into a template has more characters than the setting max_text_chars.

    text, template: the indices of both. A template may hold its {} many times.
    """

    def __init__(self, *, text: int, template: int, actual: int, limit: int) -> None:
        super().__init__(
            f"Text {text} in template {template} makes a prompt of {actual:,} characters; the limit is {limit:,}.",
            actual=actual,
            limit=limit,
        )
        self.facts |= {"text": text, "template": template}


class TooMuchText(LimitExceeded):
    """The prompts (texts x templates) of one request have more characters than the setting max_prompt_chars."""

    def __init__(self, *, actual: int, limit: int) -> None:
        super().__init__(
            f"The prompts (texts x templates) of this request have {actual:,} characters; the limit is {limit:,}.",
            actual=actual,
            limit=limit,
        )


class AnswerTooLarge(LimitExceeded):
    """The answer would have more numbers than one in this format may have (setting max_json_values).

    Ask for a binary format: `Accept: application/vnd.safetensors`, or `format=safetensors`.
    """

    def __init__(self, *, actual: int, limit: int, advice: str) -> None:
        super().__init__(
            f"The answer would have {actual:,} numbers, and the limit in this format is {limit:,}: {advice}.",
            actual=actual,
            limit=limit,
        )


class HeatmapTooLarge(LimitExceeded):
    """The heat maps of one request would have more values than the setting max_heatmap_values."""

    def __init__(self, *, actual: int, limit: int) -> None:
        super().__init__(
            f"The heat maps would have {actual:,} values (images x texts x patches); the limit is {limit:,}.",
            actual=actual,
            limit=limit,
        )


class OverHostMemory(LimitExceeded):
    """A stage of the request (body, image, input, texts, answer) needs more than the setting memory_budget."""

    def __init__(self, *, stage: str, needed: int, limit: int) -> None:
        super().__init__(
            f"The {stage} of this request needs {show_bytes(needed)} of the server's memory, and all requests together "
            f"may hold {show_bytes(limit)}.",
            actual=needed,
            limit=limit,
        )


class ImageDoesNotFit(LimitExceeded):
    """A forward of one image at this resolution needs more device memory than the budget leaves beside the weights.

    It was not queued. largest_resolution is the largest of the same proportions that fits, null if none does.
    """

    def __init__(
        self, *, model: str, resolution: ImageSize, predicted: int, room: int, budget: int, largest: ImageSize | None
    ) -> None:
        advice = f"The largest resolution that fits is {largest}." if largest else "No resolution fits."
        super().__init__(
            f"A forward of {model} at {resolution} needs {show_bytes(predicted)} and the memory budget leaves "
            f"{show_bytes(room)}. {advice}",
            actual=predicted,
            limit=room,
        )
        self.facts |= {
            "model": model,
            "resolution": list(resolution),
            "predicted_bytes": predicted,
            "budget_bytes": budget,
            "available_bytes": room,
            "largest_resolution": None if largest is None else list(largest),
        }


class ModelDoesNotFit(VisiontowerError):
    """The encoder's weights and a forward of one image need more device memory than the budget has for them."""

    def __init__(self, model: str, *, needed: int, room: int, limit: int) -> None:
        super().__init__(
            f"{model} needs {show_bytes(needed)} for its weights and one forward, and of the budget of "
            f"{show_bytes(limit)} there are {show_bytes(max(0, room))} left: raise vram_budget, serve fewer encoders, "
            "or let them take turns with when_full=evict.",
            model=model,
            predicted_bytes=needed,
            budget_bytes=limit,
            available_bytes=room,
        )


class Unavailable(VisiontowerError):
    """The server cannot take the request now; `retry_after_s` says when to try again."""

    def __init__(self, message: str, *, retry_after_s: int, **facts: object) -> None:
        super().__init__(message, retry_after_s=retry_after_s, **facts)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """As much work is waiting as the server admits (settings queue_images, queue_texts and queue_plans)."""

    def __init__(self, *, what: str, waiting: int, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"{waiting} {what} are being worked on and the limit is {limit}; try again in {retry_after_s} s.",
            retry_after_s=retry_after_s,
            waiting=waiting,
            limit=limit,
        )


class HostMemoryFull(Unavailable):
    """Other requests hold the memory that this one needs (setting memory_budget).

    Large requests leave room for small ones.
    """

    def __init__(self, *, stage: str, needed: int, free: int, limit: int) -> None:
        super().__init__(
            f"The {stage} of this request needs {show_bytes(needed)} of the server's memory; of the "
            f"{show_bytes(limit)} for requests {show_bytes(max(0, free))} are free; try again in 1 s.",
            retry_after_s=1,
            stage=stage,
            needed=needed,
            free=max(0, free),
            limit=limit,
        )


class ModelWaitsForRoom(Unavailable):
    """The encoder is not loaded, and those that are have been in use too recently to make room for it.

    The setting evict_idle_s says for how long an encoder must have been idle.
    """

    def __init__(self, model: str, *, needed: int, room: int, retry_after_s: int) -> None:
        retry_after_s = max(1, retry_after_s)
        super().__init__(
            f"{model} is not loaded: it needs {show_bytes(needed)}, {show_bytes(max(0, room))} are free and the other "
            f"encoders are in use; try again in {retry_after_s} s.",
            retry_after_s=retry_after_s,
            model=model,
        )


class ModelFailed(Unavailable):
    """The encoder could not be loaded when it was last tried. The server tries again later; `/models` says when."""

    def __init__(self, model: str, *, reason: str, retry_after_s: int) -> None:
        retry_after_s = max(1, retry_after_s)
        super().__init__(
            f"{model} could not be loaded. It is tried again in {retry_after_s} s at the earliest.",
            retry_after_s=retry_after_s,
            model=model,
        )
        self.reason = reason


class LabelsNotReady(Unavailable):
    """The named set of labels is being embedded, which is done once; that goes on until the request is sent again.

    done: how many of its `number` labels have been embedded.
    """

    def __init__(self, labels: str, *, done: int, number: int, retry_after_s: int) -> None:
        super().__init__(
            f"The labels '{labels}' are being embedded, {done:,} of {number:,} are done; "
            f"try again in {retry_after_s} s.",
            retry_after_s=retry_after_s,
            labels=labels,
            done=done,
            number=number,
        )


class ShuttingDown(Unavailable):
    """The server is stopping: it finishes what it has admitted and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", retry_after_s=5)


class DeviceLost(Unavailable):
    """The thread that owns the device has ended; the server needs a restart."""

    def __init__(self) -> None:
        super().__init__("The device is lost; the server has to be restarted.", retry_after_s=30)


class DeviceHangs(Unavailable):
    """A forward has taken many times longer than it should, and may never end.

    The server ends, for a supervisor to start it anew; with the setting on_hang=stay it waits for the forward, and
    serves meanwhile what it can.
    """

    def __init__(self, work: str, *, limit_s: float) -> None:
        super().__init__(
            f"The device hangs: {work} has taken longer than {limit_s:.1f} s.", retry_after_s=30, limit_s=limit_s
        )


class DeadlineExceeded(VisiontowerError):
    """The request was not answered in time: within its own limit, or the setting request_timeout_s."""

    def __init__(self) -> None:
        super().__init__("The request was not answered in time; its waiting work was dropped.")
