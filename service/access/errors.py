"""The errors of access keys.

VisiontowerError
├── InvalidKey                 no access key where one is needed, or a wrong one
├── ModelNotAllowed            not one of the encoders that the access key may use
├── LimitExceeded
│   └── TooManyImagesForKey    more than the access key may ever have at once
└── Unavailable
    └── KeyLimitReached        the access key has used what it may for now
        ├── RequestsTooFast
        ├── ImagesInFlight
        └── DayUsedUp
"""

from collections.abc import Sequence

from encoders.contract.errors import VisiontowerError
from service.errors import LimitExceeded, Unavailable, shown


class InvalidKey(VisiontowerError):
    """The server asks for an access key, and none was sent, or one that it does not know.

    Send it as `Authorization: Bearer KEY`. Whoever runs the server creates keys (`visiontower keys create`).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"This server asks for an access key, and {reason}: send 'Authorization: Bearer KEY'.")


class ModelNotAllowed(VisiontowerError):
    """The access key may not use this encoder; the detail names those it may use."""

    def __init__(self, model: str, *, key: str, allowed: Sequence[str]) -> None:
        super().__init__(
            f"The access key '{key}' may not use '{shown(model)}'. It may use {', '.join(allowed)}.",
            key=key,
            model=shown(model),
            allowed=list(allowed),
        )
        self.key = key
        self.limit = "models"


class TooManyImagesForKey(LimitExceeded):
    """The request has more images than its access key may have in flight, or in a whole day."""

    def __init__(self, key: str, *, field: str, actual: int, limit: int) -> None:
        at_most = "in flight" if field == "images_in_flight" else "a day"
        super().__init__(
            f"{actual:,} images in one request; the access key '{key}' may have {limit:,} {at_most}.",
            actual=actual,
            limit=limit,
        )
        self.facts["key"] = key
        self.key = key
        self.limit = field


class KeyLimitReached(Unavailable):
    """The access key has used what it may for now; `retry_after_s` says when it may again.

    limit: the field of the key that says how much.
    """

    limit = ""

    def __init__(self, message: str, *, key: str, retry_after_s: int, **facts: object) -> None:
        super().__init__(f"The access key '{key}' {message}.", retry_after_s=retry_after_s, key=key, **facts)
        self.key = key


class RequestsTooFast(KeyLimitReached):
    """The access key has sent more requests than it may in a second."""

    limit = "requests_per_second"

    def __init__(self, key: str, *, limit: float, retry_after_s: int) -> None:
        super().__init__(
            f"may send {limit:g} requests a second; try again in {retry_after_s} s",
            key=key,
            retry_after_s=retry_after_s,
            limit=limit,
        )


class ImagesInFlight(KeyLimitReached):
    """As many images of the access key are being worked on as it may have in flight."""

    limit = "images_in_flight"

    def __init__(self, key: str, *, inside: int, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"may have {limit:,} images in flight, and has {inside:,}; try again in {retry_after_s} s",
            key=key,
            retry_after_s=retry_after_s,
            limit=limit,
            inside=inside,
        )


class DayUsedUp(KeyLimitReached):
    """The access key has not so many images left for today. The day ends at midnight, UTC."""

    limit = "images_per_day"

    def __init__(self, key: str, *, left: int, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"may send {limit:,} images a day, and has {left:,} left; the day ends at midnight (UTC), in "
            f"{retry_after_s:,} s",
            key=key,
            retry_after_s=retry_after_s,
            limit=limit,
            left=left,
        )
