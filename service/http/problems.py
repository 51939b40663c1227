"""Error class -> HTTP problem (RFC 9457). This module alone knows status codes; it knows no route.

The `type` of a problem is /problems/{slug}: a stable name to program against, and a page to read (`page`).
Facts of an error become members of its problem; anything unforeseen is `internal`, with no detail at all.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, TypeAlias

from encoders.contract import errors as e
from service import errors as s
from service.access import errors as a
from service.http import errors as h
from service.http.json import to_json
from service.http.protocol import Answer

MEDIA_TYPE = "application/problem+json"

Problem: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class ProblemType:
    """How a class of errors looks from outside."""

    status: int
    slug: str
    title: str
    about: str = ""
    """Its page's text; if empty, the docstring of the class."""

    @property
    def uri(self) -> str:
        """The problem's `type`, relative to the server."""
        return f"/problems/{self.slug}"


_UNFORESEEN = "The server failed in a way that it did not foresee. Its log has the trace, under the request's id."

TYPES: Mapping[type[BaseException], ProblemType] = {
    e.VisiontowerError: ProblemType(500, "internal", "Internal error", _UNFORESEEN),
    e.ImageError: ProblemType(422, "unusable-image", "Unusable image"),
    e.EmptyImage: ProblemType(422, "empty-image", "Empty image"),
    e.NotAnImage: ProblemType(415, "not-an-image", "Image format not read"),
    e.UnsupportedImage: ProblemType(422, "unsupported-image", "Kind of image not read"),
    e.UndecodableImage: ProblemType(422, "undecodable-image", "Undecodable image"),
    e.ImageTooLarge: ProblemType(413, "image-too-large", "Image too large"),
    e.RequestError: ProblemType(422, "invalid-request", "Invalid request"),
    e.UnsupportedResolution: ProblemType(422, "unsupported-resolution", "Unsupported resolution"),
    e.LayerNotFound: ProblemType(422, "layer-not-found", "Layer not found"),
    e.OutputNotOffered: ProblemType(422, "output-not-offered", "Output not offered"),
    e.InvalidText: ProblemType(422, "invalid-text", "Invalid text"),
    e.EncoderIdError: ProblemType(404, "invalid-encoder-id", "Invalid encoder id"),
    e.Int8Refused: ProblemType(422, "int8-refused", "Not in int8"),
    e.WeightsError: ProblemType(500, "weights", "Weights cannot be loaded"),
    e.WeightsNotHere: ProblemType(500, "weights-not-here", "Weights are not on this machine"),
    e.EncoderFailed: ProblemType(500, "encoder-failed", "Encoder failed"),
    e.NonFiniteOutput: ProblemType(500, "non-finite-output", "Non-finite output"),
    e.OutOfMemory: ProblemType(507, "out-of-memory", "Out of device memory"),
    h.ImageAsText: ProblemType(422, "image-as-text", "Image as text"),
    h.InvalidBase64: ProblemType(422, "invalid-base64", "Invalid base64"),
    s.ImageUrlRefused: ProblemType(422, "image-url-refused", "Image URL refused"),
    s.ImageFetchFailed: ProblemType(422, "image-fetch-failed", "Image could not be fetched"),
    h.InvalidBody: ProblemType(400, "invalid-body", "Invalid body"),
    s.ImageUnreadable: ProblemType(422, "image-unreadable", "Image file cannot be read"),
    s.InvalidOption: ProblemType(422, "invalid-option", "Invalid option"),
    s.NoImages: ProblemType(422, "no-images", "No images"),
    s.NoTexts: ProblemType(422, "no-texts", "No texts"),
    s.WidthNotOffered: ProblemType(422, "width-not-offered", "Width not offered"),
    s.TextTooLong: ProblemType(422, "text-too-long", "Text too long"),
    s.NumbersDoNotFit: ProblemType(422, "numbers-do-not-fit", "Numbers do not fit the dtype"),
    a.InvalidKey: ProblemType(401, "invalid-key", "Access key needed"),
    a.ModelNotAllowed: ProblemType(403, "model-not-allowed", "Model not allowed"),
    a.TooManyImagesForKey: ProblemType(413, "too-many-images-for-key", "Too many images for the access key"),
    a.KeyLimitReached: ProblemType(429, "key-limit-reached", "Limit of the access key reached"),
    a.RequestsTooFast: ProblemType(429, "requests-too-fast", "Requests too fast"),
    a.ImagesInFlight: ProblemType(429, "images-in-flight", "Too many images in flight"),
    a.DayUsedUp: ProblemType(429, "day-used-up", "Images of the day used up"),
    s.UnknownModel: ProblemType(404, "unknown-model", "Unknown model"),
    h.NoSuchRoute: ProblemType(404, "no-such-route", "No such route"),
    h.MethodNotAllowed: ProblemType(405, "method-not-allowed", "Method not allowed"),
    h.OnAnotherPort: ProblemType(404, "on-another-port", "On another port"),
    h.CrossSite: ProblemType(403, "cross-site", "Cross-site request"),
    h.BadItem: ProblemType(422, "bad-item", "One item cannot be used"),
    h.UnknownProblem: ProblemType(404, "unknown-problem", "Unknown problem type"),
    h.UnsupportedMediaType: ProblemType(415, "unsupported-media-type", "Unsupported media type"),
    h.UnsupportedContentEncoding: ProblemType(415, "unsupported-content-encoding", "Unsupported content encoding"),
    h.NotAcceptable: ProblemType(406, "not-acceptable", "Not acceptable"),
    s.LimitExceeded: ProblemType(413, "limit-exceeded", "Limit exceeded"),
    h.BodyTooLarge: ProblemType(413, "body-too-large", "Body too large"),
    h.TooManyImages: ProblemType(413, "too-many-images", "Too many images"),
    s.TooManyTexts: ProblemType(413, "too-many-texts", "Too many texts"),
    s.PromptTooLong: ProblemType(413, "prompt-too-long", "Prompt too long"),
    s.TooMuchText: ProblemType(413, "too-much-text", "Too much text"),
    s.HeatmapTooLarge: ProblemType(413, "heatmap-too-large", "Heat map too large"),
    s.AnswerTooLarge: ProblemType(413, "answer-too-large", "Answer too large"),
    s.OverHostMemory: ProblemType(413, "over-host-memory", "More memory than requests may hold"),
    s.ImageDoesNotFit: ProblemType(413, "image-does-not-fit", "Image does not fit the memory budget"),
    s.ModelDoesNotFit: ProblemType(507, "model-does-not-fit", "Model does not fit the memory budget"),
    s.Unavailable: ProblemType(503, "unavailable", "Unavailable"),
    s.Overloaded: ProblemType(503, "overloaded", "Overloaded"),
    h.TooManyConnections: ProblemType(503, "too-many-connections", "Too many connections"),
    s.HostMemoryFull: ProblemType(503, "host-memory-full", "Memory for requests is full"),
    s.ModelWaitsForRoom: ProblemType(503, "model-waits-for-room", "Model waits for room"),
    s.ModelFailed: ProblemType(503, "model-failed", "Model could not be loaded"),
    s.LabelsNotReady: ProblemType(503, "labels-not-ready", "Labels are being embedded"),
    s.ShuttingDown: ProblemType(503, "shutting-down", "Shutting down"),
    s.DeviceHangs: ProblemType(503, "device-hangs", "Device hangs"),
    s.DeviceLost: ProblemType(503, "device-lost", "Device lost"),
    s.DeadlineExceeded: ProblemType(504, "deadline-exceeded", "Deadline exceeded"),
    h.MalformedRequest: ProblemType(400, "malformed-request", "Malformed request"),
    h.HeadTooLarge: ProblemType(431, "head-too-large", "Request head too large"),
    h.RequestTooSlow: ProblemType(408, "request-too-slow", "Request too slow"),
    h.ClientGone: ProblemType(499, "client-gone", "Client gone"),
}
"""Every class of ours. NonFiniteOutput is a 500: the input was sound, the model was not."""

_NEVER_SHOWN = (e.VisiontowerError, e.WeightsError, e.WeightsNotHere)
REFUSALS = tuple(sorted(kind.slug for kind in TYPES.values() if kind.status in (401, 403, 413, 429, 503)))
"""Reasons of the metric rejected_total: keys, limits and overload, found before work was done."""


def problem_type(error: BaseException) -> ProblemType:
    """Of the nearest class in the table; `internal` for what is not ours.

    A bad item has its cause's status, but for 415: that would say that the body's own Content-Type is not read.
    """
    if isinstance(error, h.BadItem):
        kind, status = TYPES[h.BadItem], problem_type(error.cause).status
        return kind if status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE else replace(kind, status=status)
    for cls in type(error).__mro__:
        if cls in TYPES:
            return TYPES[cls]
    return TYPES[e.VisiontowerError]


def problem(error: BaseException) -> Problem:
    """The problem object: type, title, status, detail, and the error's facts."""
    kind = problem_type(error)
    members: Problem = {"type": kind.uri, "title": kind.title, "status": kind.status}
    if isinstance(error, e.VisiontowerError) and kind.slug not in {TYPES[cls].slug for cls in _NEVER_SHOWN}:
        members["detail"] = str(error)
        members.update({name: _shown(fact) for name, fact in error.facts.items() if name not in members})
    return members


def message(error: BaseException) -> str:
    """For forms of errors that have a text alone: the detail, or the title where no more is said."""
    about = problem(error)
    return str(about.get("detail", about["title"]))


def _shown(fact: object) -> object:
    """JSON here holds integers of 64 bits; a caller's number may be longer."""
    return str(fact) if isinstance(fact, int) and fact.bit_length() > 63 else fact


def refusal(error: BaseException) -> str | None:
    """The reason under which the metric rejected_total counts this error; None if it is no refusal."""
    slug = problem_type(_cause(error)).slug
    return slug if slug in REFUSALS else None


def write_problem(error: Exception) -> Answer:
    """The problem as an answer."""
    members = problem(error)
    return Answer(to_json(members), MEDIA_TYPE, members["status"], headers(error))


def _cause(error: BaseException) -> BaseException:
    """The error itself; of a bad item what is wrong with it."""
    return error.cause if isinstance(error, h.BadItem) else error


def headers(error: BaseException) -> dict[str, str]:
    """Headers that go with the problem."""
    if isinstance(error := _cause(error), s.Unavailable):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, a.InvalidKey):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, h.UnsupportedContentEncoding):
        return {"Accept-Encoding": ", ".join(error.accepted)}
    return {}


def of_status(status: int) -> Problem:
    """For what the framework refuses (no such route, no such method): the type says no more than the status."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}


def slugs() -> list[str]:
    """All problem types, sorted."""
    return sorted(kind.slug for kind in TYPES.values())


def page(slug: str) -> str:
    """The page of a problem type, plain text. Raises UnknownProblem."""
    for cls, kind in TYPES.items():
        if kind.slug == slug:
            about = kind.about or inspect.cleandoc(cls.__doc__ or "")
            return f"{kind.title}\n\ntype    {kind.uri}\nstatus  {kind.status}\n\n{about}\n"
    raise h.UnknownProblem(slug)
