"""POST /embed: images to tokens and pooled vectors."""

from dataclasses import dataclass

from encoders.contract.errors import VisiontowerError
from service.engine.values import EmbedRequest, EmbedResult
from service.errors import InvalidOption
from service.http.protocol import Answer, Asked, Incoming
from service.http.protocols.native import formats
from service.http.protocols.native.body import parse
from service.http.protocols.native.negotiation import choose
from service.http.protocols.native.options import EmbedOptions, Format, read


@dataclass(frozen=True)
class Reply:
    """The form of the answer. encoding: of arrays in JSON."""

    format: Format
    encoding: str


def read_embed(incoming: Incoming) -> Asked:
    """Raises UnsupportedMediaType, InvalidBody, InvalidOption, TooManyImages or NotAcceptable."""
    body = parse(incoming.body, content_type=incoming.content_type, max_images=incoming.settings.max_images)
    options = read(EmbedOptions, query=incoming.query, body=body.fields)
    format = choose(incoming.accept, asked=options.format)
    if format in ("npy", "raw") and options.output == "both":
        raise InvalidOption("output", f"The format {format} holds one array: ask for tokens or pooled, or safetensors.")
    if format == "npy" and options.dtype == "bfloat16":
        raise InvalidOption("dtype", "The format npy has no bfloat16: ask for float32 or float16, or safetensors.")
    request = EmbedRequest(
        body.images,
        model=options.model,
        output=options.output,
        layer=options.layer,
        project=options.project,
        resolution=options.resolution,
        prefix=options.prefix,
        normalize=options.normalize,
        dtype=options.dtype,
    )
    return Asked(request, Reply(format, options.encoding_format))


def write_embed(result: EmbedResult, reply: Reply) -> Answer:
    """Status 200, or 207 if some images failed. The error of a request's only image is raised: it is the answer."""
    only = result.items[0]
    if len(result.items) == 1 and isinstance(only, VisiontowerError):
        raise only
    return formats.write(result, format=reply.format, encoding=reply.encoding)
