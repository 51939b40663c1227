"""A wire protocol: for each of its routes a way in and a way out, and a form for errors.

A protocol knows its own words and the engine's values. It knows no other protocol, and the engine knows none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from encoders.contract.spec import EncoderSpec
from service.engine.values import Request
from service.settings import Settings


@dataclass(frozen=True)
class Incoming:
    """A request as it came. query: as in the URL, percent-encoded. accept: all Accept headers, joined by commas.

    headers: by name in lower case. path: what stands in the path for the names in the route's, decoded. is_json: by the
    Content-Type. max_bytes: that such a body may have.
    """

    body: bytes
    content_type: str
    query: bytes
    accept: str
    settings: Settings
    headers: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)
    is_json: bool = False
    max_bytes: int = 0


@dataclass(frozen=True)
class Asked:
    """What a caller wants: of the engine, and of the form of its answer.

    number_bytes: host memory for each number of the answer, from the engine's result to the bytes of this form.
    most_numbers: that an answer of this form may have, None for any; advice: what to ask for instead.
    reply_of: makes the reply of the encoder's spec, where the form depends on it. Called before anything runs; raises
        RequestError for an encoder that this form is not for.
    other_bytes: host memory for what the answer has beside numbers, where that may be much.
    """

    request: Request
    reply: Any = None
    number_bytes: int = 4
    most_numbers: int | None = None
    advice: str = ""
    reply_of: Callable[[EncoderSpec], Any] | None = None
    other_bytes: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer as bytes. content: whole, or in pieces that are sent one after the other."""

    content: bytes | Sequence[bytes | memoryview]
    media_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def media_type(content_type: str) -> str:
    """Without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


Read: TypeAlias = Callable[[Incoming], Asked]
"""Body and options -> a request value. Raises VisiontowerError."""

JsonBytes: TypeAlias = Callable[[Incoming], int]
"""How many bytes of a body are read as JSON, which may be fewer than a body has, and take more memory."""

Write: TypeAlias = Callable[[Any, Any], Answer]
"""The request's result, and the reply asked for -> bytes. Raises VisiontowerError, for the whole request."""


@dataclass(frozen=True)
class Route:
    """path: may have names in braces; {name:path} takes slashes too, as many as it can.

    is_open: no access key is ever asked for: health.

    has_images: its requests are refused before they are read, if no image would be admitted.

    json_bytes: of its bodies; None where the Content-Type alone says whether all of a body is JSON.

    documentation: keywords of FastAPI's add_api_route: summary, description, responses, openapi_extra.
    """

    path: str
    read: Read
    write: Write
    method: Literal["GET", "POST"] = "POST"
    has_images: bool = True
    is_open: bool = False
    json_bytes: JsonBytes | None = None
    documentation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """name: in the setting `protocols` and in metrics. write_error: an error in the protocol's own form.

    under: paths under which everything else is refused in that form too.
    """

    name: str
    routes: Sequence[Route]
    write_error: Callable[[Exception], Answer]
    under: Sequence[str] = ()
