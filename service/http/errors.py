"""The errors of the wire, before and after the engine. They carry facts; status codes are in problems.py.

VisiontowerError (encoders/contract/errors.py)
├── ImageError
│   ├── InvalidBase64          a JSON image that is no base64
│   └── ImageAsText            base64, a URL or JSON where an image's bytes belong
├── RequestError
│   └── InvalidBody            not the JSON or multipart it says it is
├── UnknownProblem             no such page
├── NoSuchRoute                nothing is served there
├── MethodNotAllowed           what is served there is asked for by another method
├── OnAnotherPort              served by this process, and on another port
├── CrossSite                  a page of another site makes a browser send this
├── BadItem                    one of several, in a protocol whose answers have no place for its error
├── UnsupportedMediaType       a Content-Type that is not read here
├── UnsupportedContentEncoding a Content-Encoding that is not inflated here
├── NotAcceptable              an Accept that is not written here
├── LimitExceeded (service/errors.py)
│   ├── BodyTooLarge
│   └── TooManyImages
├── Unavailable (service/errors.py)
│   └── TooManyConnections     as many are open as the setting max_connections says
├── MalformedRequest           not HTTP/1.1, or sent before its turn
├── HeadTooLarge               the request line and the headers are too long
├── RequestTooSlow             head or body did not come in time
└── ClientGone                 nobody is waiting for the answer
"""

from collections.abc import Sequence

from encoders.contract.errors import ImageError, RequestError, VisiontowerError
from service.errors import LimitExceeded, Unavailable, shown


class InvalidBase64(ImageError):
    """An entry of `images` is neither base64 nor a data: URI with base64 in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The image is not valid base64: {reason}.")


class ImageAsText(ImageError):
    """A raw body, or a part of a form, has text where the bytes of an image belong: base64, a URL, or JSON."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The image is {what}, as text. A form's part and a raw body hold the bytes themselves; "
            'base64 and URLs go in JSON: {"images": ["..."]}.'
        )


class InvalidBody(RequestError):
    """The body is not what its Content-Type announces, for example broken JSON."""


class UnknownProblem(VisiontowerError):
    """There is no problem type of this name."""

    def __init__(self, slug: str) -> None:
        super().__init__(f"There is no problem type '{shown(slug)}'.")


class NoSuchRoute(VisiontowerError):
    """Nothing is served on this path."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"There is no {shown(method)} {shown(path)} here: see /docs.")


class MethodNotAllowed(VisiontowerError):
    """What is served on this path is asked for by another method."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"{shown(path)} has no {shown(method)}: see /docs.")


class OnAnotherPort(VisiontowerError):
    """This is not served on this port.

    With the setting metrics_port, /metrics and /health/ are on that port alone, and nothing else is there.
    """

    def __init__(self, path: str, *, port: int | None) -> None:
        if port is None:
            super().__init__(f"{shown(path)} is not served on this port: here are /metrics and /health/ alone.")
        else:
            super().__init__(f"{shown(path)} is served on port {port}.", port=port)


class CrossSite(VisiontowerError):
    """A browser sent this for a page of another site, and the operator has not allowed that page's origin.

    To allow it: `--cors-origins https://app.example.org`. The service's own page is taken for another site's if a proxy
    without https changes the Host header, or sends requests from this machine under a name: allow that origin too.
    Programs that are no browsers send neither Origin nor Sec-Fetch-Site, and are not asked.
    """

    def __init__(self, origin: str | None) -> None:
        at = "of another site" if origin is None else f"of the origin {shown(origin)}"
        super().__init__(f"A page {at} may not send this: see the setting cors_origins.")


class BadItem(VisiontowerError):
    """One of the images or texts cannot be used, and an answer of this protocol has no place for its error.

    So the request is refused whole. Send the others again without it, or send them to /embed.
    """

    def __init__(self, where: str, cause: VisiontowerError) -> None:
        super().__init__(f"{where}: {cause}", **{**cause.facts, "where": where})
        self.where = where
        self.cause = cause


class UnsupportedMediaType(VisiontowerError):
    """The Content-Type is none that this route reads: the detail names those."""

    def __init__(
        self,
        content_type: str,
        advice: str = "",
        *,
        read: str = "multipart/form-data, image/*, application/octet-stream or application/json",
    ) -> None:
        super().__init__(
            f"Content-Type '{shown(content_type)}' is not read here: send {read}.{advice}",
            content_type=shown(content_type),
        )


class UnsupportedContentEncoding(VisiontowerError):
    """The body is compressed in a way that is not read here: send it as it is, or with gzip or deflate."""

    accepted = ("gzip", "deflate")

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"Content-Encoding '{shown(encoding)}' is not read here: send the body as it is, or one of "
            f"{', '.join(self.accepted)}.",
            content_encoding=shown(encoding),
            accepted=list(self.accepted),
        )


class NotAcceptable(VisiontowerError):
    """None of the formats in the Accept header can be written."""

    def __init__(self, accept: str, *, offered: Sequence[str]) -> None:
        super().__init__(
            f"None of '{shown(accept)}' can be written. Offered: {', '.join(offered)}.", offered=list(offered)
        )


class BodyTooLarge(LimitExceeded):
    """The body has more bytes than the setting max_body_bytes, or is JSON and has more than max_json_bytes."""

    def __init__(self, *, actual: int | None, limit: int, is_inflated: bool = False, is_json: bool = False) -> None:
        body = "JSON body" if is_json else "body"
        has = "is" if actual is None else f"of {actual:,} bytes is"
        once = " once it is inflated" if is_inflated else ""
        advice = ": send large images in a multipart form" if is_json else ""
        super().__init__(
            f"The {body} {has} over the limit of {limit:,} bytes{once}{advice}.", actual=actual, limit=limit
        )


class TooManyConnections(Unavailable):
    """As many connections are open as the server takes (setting max_connections). This one was closed."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"{limit} connections are open, and no more are taken.", retry_after_s=1, limit=limit)


class MalformedRequest(VisiontowerError):
    """What came is not a request of HTTP/1.1, or requests were sent ahead that may not be."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The request is not read: {reason}.")


class HeadTooLarge(VisiontowerError):
    """The request line and the headers are longer than the server reads, or they are too many.

    Long texts belong in the body, not in the query.
    """

    def __init__(self, *, limit: int, most_headers: int) -> None:
        super().__init__(
            f"The request line and the headers have over {limit:,} bytes, or there are over {most_headers} headers.",
            limit=limit,
            most_headers=most_headers,
        )


class RequestTooSlow(VisiontowerError):
    """The head of the request or its body did not come in time (settings header_timeout_s and stall_timeout_s)."""

    def __init__(self, what: str, *, seconds: float) -> None:
        super().__init__(f"{what} within {seconds:g} s.", limit=seconds)


class TooManyImages(LimitExceeded):
    """The request has more images than the setting max_images."""

    def __init__(self, *, actual: int, limit: int) -> None:
        super().__init__(f"{actual} images in one request; the limit is {limit}.", actual=actual, limit=limit)


class ClientGone(VisiontowerError):
    """The client closed the connection; its waiting work was dropped."""

    def __init__(self) -> None:
        super().__init__("The client has gone.")
