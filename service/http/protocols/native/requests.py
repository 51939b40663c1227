"""Bodies and options of the native routes -> the engine's requests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar
from urllib.parse import parse_qsl

from pydantic import BeforeValidator, FailFast, Field, PlainValidator

from encoders.contract.spec import EncoderSpec
from service.engine.templates import NAMED, PHOTO, PLAIN
from service.engine.values import DTYPES, Dtype, Output, PlanRequest, SimilarityRequest, Source
from service.errors import InvalidOption, NoImages, NoTexts, shown, shown_value
from service.http.errors import UnsupportedMediaType
from service.http.json import NUMBER_BYTES
from service.http.options import EmbeddingOptions, Layer, ModelOption, ResolutionOption, Size, no_bool, validated
from service.http.protocol import Asked, Incoming, media_type
from service.http.protocols.native.body import Body, form_body, json_body
from service.http.protocols.native.handoff import Parts, parts_of
from service.http.protocols.native.hints import as_image, meant, require_no_json, type_advice
from service.http.protocols.native.negotiation import PARTS, Format, choose

_NUMBER_BYTES = {"json": NUMBER_BYTES, "base64": 16, "binary": 8, "part": 20}
"""Host memory for each number of an answer: as computed, as asked for, and as written."""
_MOST_PAIRS = 4096
"""Names and values in a query."""
_MOST_CHARS = 1000
"""Of the value of an option that is no text."""
_IMAGES_GO = ": send parts named 'image', a raw body, or JSON 'images'"
_TEXTS_GO = f"{_IMAGES_GO}; texts go in fields named 'text', or JSON 'texts'"

_LABELS_GO = ": send fields named 'label', JSON 'labels', or in 'labels' the name of a set that the server knows"
_LABEL_BYTES = 2
"""Of an answer for each character of a label, by each of the label's three numbers: JSON may need six."""


@dataclass(frozen=True)
class EmbedReply:
    """The form of an answer of /embed.

    encoding: of arrays in JSON. parts: for a language model, in place of tokens; None if they were not asked for.
    """

    format: Format
    encoding: str
    parts: Parts | None = None


@dataclass(frozen=True)
class VramReply:
    """The form of an answer of /vram. is_table: several forwards were asked about, so that the answer is a list."""

    is_table: bool


@dataclass(frozen=True)
class ClassifyReply:
    """The form of an answer of /classify. top_k: labels of each image, at most."""

    top_k: int


def parse(content: bytes, *, content_type: str, max_images: int) -> Body:
    """The images and the fields of a body.

    Raises UnsupportedMediaType, InvalidBody, InvalidOption or TooManyImages.
    """
    kind = media_type(content_type)
    if kind == "multipart/form-data":
        body = form_body(content, content_type=content_type, max_images=max_images)
    elif kind == "application/json":
        body = json_body(content, max_images=max_images)
    elif kind.startswith("image/") or kind == "application/octet-stream" or (not kind and not content):
        body = Body(images=[_raw(content, content_type) if content[:16].isascii() else content])
    else:
        require_no_json(content, content_type)
        raise UnsupportedMediaType(content_type or "none", type_advice(content, kind))
    return body


def _raw(content: bytes, content_type: str) -> Source:
    require_no_json(content, content_type)
    return as_image(content)


def read_embed(incoming: Incoming) -> Asked:
    """Raises as `parse`, and InvalidOption, NoImages or NotAcceptable."""
    body = parse(incoming.body, content_type=incoming.content_type, max_images=incoming.settings.max_images)
    options = read(EmbedOptions, query=incoming.query, body=body.fields)
    images = body.images if incoming.body or not options.texts else []  # texts may stand in the query alone
    if not images and not options.texts:
        raise NoImages(_TEXTS_GO)
    if options.format in PARTS:
        return _asked_for_parts(options.for_language_model(), images, options.format)
    if not images:
        options = options.of_texts()
    format = choose(incoming.accept, asked=options.format)
    if format in ("npy", "raw") and (options.output == "both" or (images and options.texts)):
        raise InvalidOption(
            "output", f"The format {format} holds one array: ask for tokens, pooled or texts alone, or safetensors."
        )
    if format != "json":
        options.require_alike(len(images), form=f"the format {format}")
    if format == "npy" and options.dtype == "bfloat16":
        raise InvalidOption("dtype", "The format npy has no bfloat16: ask for float32 or float16, or safetensors.")
    request = options.request(images, options.texts)
    reply = EmbedReply(format, options.encoding_format)
    if format == "json" and options.encoding_format == "float":
        most = incoming.settings.max_json_values
        return Asked(
            request, reply, _NUMBER_BYTES["json"], most, "ask for format=safetensors, or encoding_format=base64"
        )
    return Asked(request, reply, _NUMBER_BYTES["base64" if format == "json" else "binary"])


def _asked_for_parts(options: "EmbedOptions", images: Sequence[Source], format: Format) -> Asked:
    """Content parts for a language model's server, if the encoder's tokens are for one."""

    def reply_of(spec: EncoderSpec) -> EmbedReply:
        parts = parts_of(spec, format=format)
        if spec.most_views and "tiles" not in options.model_fields_set:
            raise InvalidOption(
                "tiles",
                f"The language model of {spec.id} reads an image in tiles, and can read it as one view: "
                "ask for tiles=true or tiles=false.",
            )
        return EmbedReply(format, options.encoding_format, parts)

    return Asked(options.request(images), reply_of=reply_of, number_bytes=_NUMBER_BYTES["part"])


def read_similarity(incoming: Incoming) -> Asked:
    """Raises as `parse`, and InvalidOption, NoImages, NoTexts or NotAcceptable."""
    body = parse(incoming.body, content_type=incoming.content_type, max_images=incoming.settings.max_images)
    options = read(SimilarityOptions, query=incoming.query, body=body.fields)
    if not body.images:
        raise NoImages(_IMAGES_GO)
    choose(incoming.accept, asked=options.format, offered=("json",))
    if not options.texts:
        raise NoTexts(": send fields named 'text', or JSON 'texts'")
    return Asked(
        SimilarityRequest(
            body.images,
            options.texts,
            templates=options.templates,
            heatmap=options.heatmap,
            truncate=options.truncate,
            model=options.model,
            resolution=options.resolution,
        ),
        number_bytes=_NUMBER_BYTES["json"],
    )


def read_classify(incoming: Incoming) -> Asked:
    """Raises as `parse`, and InvalidOption, NoImages or NotAcceptable."""
    body = parse(incoming.body, content_type=incoming.content_type, max_images=incoming.settings.max_images)
    options = read(ClassifyOptions, query=incoming.query, body=body.fields)
    if not body.images:
        raise NoImages(_IMAGES_GO)
    choose(incoming.accept, asked=options.format, offered=("json",))
    name = options.labels if isinstance(options.labels, str) else None
    labels = () if isinstance(options.labels, str) else options.labels
    if name is None and not labels:
        raise InvalidOption("labels", f"There is no label in the request{_LABELS_GO}.")
    request = SimilarityRequest(
        body.images,
        labels,
        templates=options.templates,
        labels=name,
        truncate=options.truncate,
        model=options.model,
        resolution=options.resolution,
    )
    answerable = labels if name is None else incoming.settings.label_sets.get(name, ())
    answered = min(1.0, options.top_k / len(answerable)) * max(map(len, answerable)) if answerable else 0.0
    return Asked(
        request, ClassifyReply(options.top_k), number_bytes=_NUMBER_BYTES["json"] + round(_LABEL_BYTES * answered)
    )


def read_vram(incoming: Incoming) -> Asked:
    """Raises InvalidOption."""
    options = read(VramOptions, query=incoming.query, body=())
    request = PlanRequest(
        model=options.model,
        resolutions=options.resolution,
        batches=options.batch,
        dtypes=options.dtype,
        output=options.output,
        layer=options.layer,
    )
    return Asked(request, VramReply(options.is_table))


class Options(ModelOption):
    """The options that all routes share, and how they are told from what stands beside them."""

    repeated: ClassVar[dict[str, str]] = {}
    """Names that may be repeated in a query or a form, and the list they make."""
    beside: ClassVar[tuple[str, ...]] = ()
    """What a body has beside options."""
    long: ClassVar[tuple[str, ...]] = ("model",)
    """Names whose values may be long."""


Texts = Annotated[tuple[str, ...], FailFast()]


def _named(value: object) -> object:
    """A name of templates, in place of them. Raises ValueError for one word that is neither a name nor a template."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        (word,) = value
        if "{}" not in word and word not in NAMED:
            raise ValueError(f"it has no {{}} for the text, and is no name of templates: {', '.join(NAMED)}")
        return NAMED.get(word, value)
    return value


Templates = Annotated[
    tuple[str, ...], FailFast(), BeforeValidator(_named, json_schema_input_type=tuple[str, ...] | str)
]


def _labels(value: object) -> str | tuple[str, ...]:
    """Labels, or the name of a set of them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list of labels, or the name of a set of them")
    for index, label in enumerate(value):
        if not isinstance(label, str):
            raise ValueError(f"label {index} is no text")
    return tuple(value)


Labels = Annotated[str | tuple[str, ...], PlainValidator(_labels, json_schema_input_type=tuple[str, ...] | str)]


class ImageOptions(Options, ResolutionOption):
    """The options of requests with images."""

    beside: ClassVar[tuple[str, ...]] = ("images",)

    format: Format | None = Field(default=None, description="Overrides the Accept header.")


class EmbedOptions(ImageOptions, EmbeddingOptions):
    """Options of /embed."""

    repeated: ClassVar[dict[str, str]] = {"text": "texts"}
    long: ClassVar[tuple[str, ...]] = ("model", "text", "texts")

    texts: Texts = Field(default=(), description="Texts to embed, alone or beside images.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="In JSON: nested lists, or base64 of the little-endian row-major bytes."
    )

    def for_language_model(self) -> Self:
        """The tokens that a language model reads, all of them and as they are.

        Raises InvalidOption for an option that would give it others, and for a dtype that the format does not have.
        """
        if self.texts:
            raise InvalidOption("texts", f"format={self.format} gives images; send texts as parts of the chat itself.")
        dtypes = [name for name in DTYPES if name != "bfloat16" or self.format == "vllm"]
        if self.dtype not in dtypes:
            raise InvalidOption("dtype", f"format={self.format} has no {self.dtype}: ask for {' or '.join(dtypes)}.")
        for name, read in _READ_BY_LANGUAGE_MODELS.items():
            if name in self.model_fields_set and getattr(self, name) != read:
                raise InvalidOption(
                    name,
                    f"'{name}' is {shown_value(getattr(self, name))}: format={self.format} gives the tokens that the "
                    "language model was trained to read. Leave it out, or ask for format=safetensors.",
                )
        return self.model_copy(update=_READ_BY_LANGUAGE_MODELS)


_READ_BY_LANGUAGE_MODELS: dict[str, object] = {
    "output": "tokens",
    "layer": None,
    "prefix": True,
    "project": True,
    "normalize": False,
    "encoding_format": "base64",
}
"""Options of /embed, and what they are in tokens for a language model."""


class SimilarityOptions(ImageOptions):
    """Options of /similarity."""

    repeated: ClassVar[dict[str, str]] = {"text": "texts", "template": "templates"}
    long: ClassVar[tuple[str, ...]] = ("model", "text", "texts", "template", "templates")

    texts: Texts = Field(default=(), description="What to compare the images with.")
    templates: Templates = Field(
        default=PLAIN,
        min_length=1,
        description="Each has {} where the text goes; a text's vector is the mean over its templates. A name stands "
        "for some: `openai` for CLIP's own eighty, `photo` for 'a photo of a {}.', `plain` for '{}'.",
    )
    heatmap: bool = Field(default=False, description="Add the cosine of every patch with every text.")
    truncate: bool = Field(
        default=True,
        description="Cut texts past the context length, and name them in `truncated`; false refuses them.",
    )


class ClassifyOptions(ImageOptions):
    """Options of /classify."""

    repeated: ClassVar[dict[str, str]] = {"label": "labels", "template": "templates"}
    long: ClassVar[tuple[str, ...]] = ("model", "label", "template", "templates")

    labels: Labels = Field(
        default=(), description="A list of labels, or the name of a set that the server was started with."
    )
    templates: Templates = Field(
        default=PHOTO, min_length=1, description="As of /similarity; default: 'a photo of a {}.'."
    )
    top_k: Annotated[int, Field(ge=1, le=100_000), BeforeValidator(no_bool)] = Field(
        default=5, description="The likeliest labels of each image, so many, or all if there are fewer."
    )
    truncate: bool = Field(default=True, description="As of /similarity, of labels.")


def _listed(value: object) -> object:
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


T = TypeVar("T")
Listed = Annotated[tuple[T, ...], BeforeValidator(_listed)]
_Batch = Annotated[int, Field(ge=1, le=100_000)]


class VramOptions(Options):
    """Options of /vram; lists hold commas."""

    resolution: Listed[Size] = Field(
        default=(), max_length=16, description="N or HxW, or several. Default: the native size."
    )
    batch: Listed[_Batch] = Field(
        default=(1,), min_length=1, max_length=16, description="Images in a forward, or several numbers."
    )
    dtype: Listed[Dtype] = Field(
        default=(),
        max_length=len(DTYPES),
        description="What the encoder would compute in, or several. Default: what it does compute in.",
    )
    output: Output = Field(default="tokens", description="As of /embed.")
    layer: Layer | None = Field(default=None, description="As of /embed.")

    @property
    def is_table(self) -> bool:
        """Whether several forwards are asked about."""
        return max(len(self.resolution), len(self.batch), len(self.dtype)) > 1


O = TypeVar("O", bound=Options)  # noqa: E741  # one letter, as type variables are
Pairs = Iterable[tuple[str, object]]


def read(model: type[O], *, query: bytes, body: Sequence[tuple[str, object]]) -> O:
    """The options out of the query (percent-encoded) and the body. One may be in both if it says the same.

    Raises InvalidOption, which names the option and what would be right.
    """
    return _read(model, _pairs(query), body) if body else _in_query(model, query)


class _InQuery(Protocol):
    """lru_cache forgets what a generic function gives."""

    def __call__(self, model: type[O], query: bytes) -> O: ...


def _read_query(model: type[O], query: bytes) -> O:
    return _read(model, _pairs(query), ())


_in_query: _InQuery = lru_cache(maxsize=64)(_read_query)
"""The options out of the query alone. Kept for a few queries: most callers send the same again and again."""


def _pairs(query: bytes) -> list[tuple[str, str]]:
    """Names and values, in order."""
    if query.count(b"&") >= _MOST_PAIRS:
        raise InvalidOption("query", f"The query has over {_MOST_PAIRS:,} names and values.")
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def _read(model: type[O], query: Pairs, body: Pairs) -> O:
    in_query, in_body = _gather(model, query), _gather(model, body)
    for name in in_query.keys() & in_body.keys():
        if _plain(in_query[name]) != _plain(in_body[name]):
            raise InvalidOption(
                name,
                f"'{name}' is {shown_value(in_query[name])} in the query but {shown_value(in_body[name])} in the body.",
            )
    return validated(model, {**in_query, **in_body})


def _gather(model: type[O], pairs: Pairs) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lists: dict[str, list[object]] = {}
    for name, value in pairs:
        if name not in model.model_fields and name not in model.repeated:
            known = [*model.beside, *model.model_fields, *model.repeated]
            raise InvalidOption.unknown(name, known, advice=meant(name, known))
        if isinstance(value, list | dict):
            _require_flat(name, value)
        if isinstance(value, str) and len(value) > _MOST_CHARS and name not in model.long:
            raise InvalidOption(
                name, f"'{name}' has {len(value):,} characters; no value of it has over {_MOST_CHARS:,}."
            )
        if name in model.repeated and value is not None:
            lists.setdefault(model.repeated[name], []).extend(value if isinstance(value, list) else [value])
        elif name in found and _plain(found[name]) != _plain(value):
            raise InvalidOption(name, f"'{name}' is given twice: {shown_value(found[name])} and {shown_value(value)}.")
        elif value is not None:
            found[name] = value
    for name, list_name in model.repeated.items():
        if list_name in found and list_name in lists:
            raise InvalidOption(name, f"'{name}' and '{list_name}' are one option: give one of them.")
    return {**found, **lists}


def _require_flat(name: str, value: object) -> None:
    """No option is nested; a caller's nest may be deeper than Python can walk."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, list | dict):
            raise InvalidOption(name, f"'{shown(name)}' must be a value or a list of values, not nested ones.")


def _plain(value: object) -> object:
    """For comparing what a query says in text with what JSON says in types."""
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value).strip().lower()
