"""What went wrong, as exceptions with the facts that the server gave.

VisiontowerError
├── BadImage         one image cannot be used: unreadable, broken, too large, of an unknown kind
├── InvalidRequest   an option, a text or the form of the request
├── UnknownModel     the server does not serve this encoder
├── NotAllowed       the access key is missing or wrong, or may not use this encoder
├── LimitExceeded    over a limit of the server; the facts have the limit
├── Overloaded       try again later; tried again already as often as `retries` allows
├── TimedOut         no answer in time
├── Unreachable      no server there, or the connection broke
└── ServerFailed     the server's fault, or an answer that is not visiontower's
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import httpx


class VisiontowerError(Exception):
    """Root of all errors of this client.

    status: of HTTP; None if there was no answer. slug: the server's stable name of the problem, such as
    `undecodable-image`; the server explains it under /problems/SLUG. facts: limits, actual values, known names.
    index: of the image or text among the inputs, if the error is about one.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        slug: str = "",
        facts: Mapping[str, Any] | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.slug = slug
        self.facts = dict(facts or {})
        self.index = index

    def __str__(self) -> str:
        place = "" if self.index is None else f"input {self.index}: "
        kind = f" [{' '.join(str(word) for word in (self.status, self.slug) if word)}]" if self.status else ""
        return f"{place}{self.detail}{kind}"


class BadImage(VisiontowerError):
    """One image cannot be used. The others can be sent again without it, or with errors="return"."""


class InvalidRequest(VisiontowerError):
    """An option has a wrong name or value, a text cannot be used, or the encoder does not offer what was asked for."""


class UnknownModel(VisiontowerError):
    """The server does not serve this encoder. facts: `known` or similar names, if the server says so."""


class NotAllowed(VisiontowerError):
    """The server wants an access key, or another one. facts: `allowed`, the encoders that this one may use."""


class LimitExceeded(VisiontowerError):
    """More than the server takes in one request. A smaller `batch` may help; the facts have the limit."""


class Overloaded(VisiontowerError):
    """The server, or a gateway before it, cannot take the request now, or the gateway has lost it (a plain 500).

    Or the access key has used what it may for now: requests of a second, images at once, images of the day.

    retry_after_s: when to try again, if the server says so.
    """

    retry_after_s: float | None = None


class TimedOut(VisiontowerError):
    """No answer within the client's `timeout`, or within the server's own limit."""


class Unreachable(VisiontowerError):
    """Nothing listens there, or the connection broke."""


class ServerFailed(VisiontowerError):
    """The server failed, or the answer is not one of visiontower."""


_IMAGE = frozenset(
    {
        "unusable-image",
        "empty-image",
        "not-an-image",
        "unsupported-image",
        "undecodable-image",
        "image-too-large",
        "image-as-text",
        "invalid-base64",
        "image-url-refused",
        "image-fetch-failed",
        "image-unreadable",
        "image-does-not-fit",
    }
)
_SHOWN = 200
"""Characters of an unknown answer that its error shows."""
_MOST_DETAIL = 2000
"""Characters of a detail that are kept: the server's own have fewer."""
_OF_STATUS: Mapping[int, type[VisiontowerError]] = {
    401: NotAllowed,
    403: NotAllowed,
    408: TimedOut,
    413: LimitExceeded,
    429: Overloaded,
    431: LimitExceeded,
    502: Overloaded,
    503: Overloaded,
    504: TimedOut,
}


def of_problem(problem: Mapping[str, Any], *, index: int | None = None) -> VisiontowerError:
    """The exception for a problem object (RFC 9457). Whatever is not of its kind in it counts as absent.

    Raises TypeError for what is no object.
    """
    if not isinstance(problem, Mapping):
        raise TypeError(f"a problem is {type(problem).__name__}, and no object")
    facts = dict(problem)
    slug = _text(facts.pop("type", "")).partition("/problems/")[2]
    title = _text(facts.pop("title", "")) or slug
    said = facts.pop("status", None)
    status = said if type(said) is int and 100 <= said <= 599 else None
    detail = _text(facts.pop("detail", "")) or title
    if slug in _IMAGE:
        kind: type[VisiontowerError] = BadImage
    elif slug in ("unknown-model", "invalid-encoder-id"):
        kind = UnknownModel
    else:
        known = InvalidRequest if 400 <= (status or 500) < 500 else ServerFailed
        kind = _OF_STATUS.get(status or 0, known)
    error = kind(detail, status=status, slug=slug, facts=facts, index=index)
    if isinstance(error, Overloaded):
        error.retry_after_s = _seconds(facts.get("retry_after_s"))
    return error


def of_response(response: httpx.Response) -> VisiontowerError:
    """The exception for an answer that is no success; a gateway's answer may be any text."""
    where = f"{response.request.method} {response.url.path}"
    try:
        problem = json.loads(response.content)
    except (ValueError, RecursionError):
        problem = None
    is_gateway = not isinstance(problem, dict) or "status" not in problem
    if is_gateway:
        said = " ".join(response.text[:_SHOWN].split())
        if "location" in response.headers:
            said = f"{where} is elsewhere: {response.headers['location'][:_SHOWN]}. Give that server's own address."
        problem = {"title": f"{response.status_code} {response.reason_phrase}", "detail": said}
    if "detail" not in problem and "/problems/" not in _text(problem.get("type")):
        problem["detail"] = f"{where} is not served there: {_text(problem.get('title')) or 'no reason'}"
    error = of_problem({**problem, "status": response.status_code})
    if response.status_code == 500 and is_gateway and "problem+json" not in response.headers.get("content-type", ""):
        error = Overloaded(error.detail, status=500)  # the service answers 500 with a problem: the gateway has lost it
    if isinstance(error, Overloaded):  # the header may be absent, or a date: the client's own pace then
        error.retry_after_s = _seconds(response.headers.get("retry-after")) or error.retry_after_s
    return error


def _text(value: object) -> str:
    return value[:_MOST_DETAIL] if isinstance(value, str) else ""


def _seconds(value: object) -> float | None:
    """A number of seconds, also as text; None for anything else."""
    try:
        seconds = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else seconds
