"""The options of an embedding, the same in every protocol that can carry them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from encoders.contract.values import ImageSize
from service.engine.values import EmbedRequest, Output, Source, VectorDtype
from service.errors import InvalidOption, shown_value
from service.sizes import parse_image_size


def _resolution(value: object) -> ImageSize | None:
    """N or HxW, as text or (N) as a number."""
    if value is None or isinstance(value, ImageSize):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        value = ""
    return parse_image_size(value)


def no_bool(value: object) -> object:
    """The value. Raises ValueError for true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected an integer")
    return value


Size = Annotated[ImageSize, BeforeValidator(_resolution, json_schema_input_type=int | str)]
Resolution = Annotated[
    ImageSize | None,
    BeforeValidator(_resolution, json_schema_input_type=int | str | None),
]
Layer = Annotated[int, Field(ge=-10_000, le=10_000), BeforeValidator(no_bool)]


class ModelOption(BaseModel):
    """The option that all requests share. In JSON a null means the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description="Id of a served encoder; default the first served.")


class ResolutionOption(ModelOption):
    """The options of requests with images."""

    about_images: ClassVar[tuple[str, ...]] = ("resolution",)
    """Options that say nothing of texts."""

    resolution: Resolution = Field(
        default=None, description="N or HxW: run the model at that size. Default: its native size."
    )

    def require_no_images(self) -> None:
        """Of a request for texts alone. Raises InvalidOption for an option about images."""
        for name in self.about_images:
            if getattr(self, name) not in (None, False):
                raise InvalidOption(name, f"'{name}' is about images, and there are only texts.")


class EmbeddingOptions(ResolutionOption):
    """Which numbers to give."""

    about_images: ClassVar[tuple[str, ...]] = ("layer", "prefix", "project", "tiles", "resolution")

    output: Output = Field(default="tokens", description="What to give for each image; texts have vectors alone.")
    layer: Layer | None = Field(
        default=None,
        description="Block (for CNNs: stage) whose raw output to give as tokens, from 0, negatives from the end. "
        "Default: the final tokens, after the final norm.",
    )
    prefix: bool = Field(default=False, description="Keep class and register tokens ahead of the patch tokens.")
    project: bool = Field(default=False, description="Tokens through the model's own (multimodal) projection.")
    tiles: bool = Field(
        default=False,
        description="With `project`: cut each image into views as the model does, and join their tokens as its "
        "language model reads them (LLaVA-NeXT, LLaVA-OneVision). The answer's grid is one row.",
    )
    normalize: bool = Field(default=False, description="L2-normalise each vector.")
    dtype: VectorDtype = Field(
        default="float32",
        description="Of the numbers returned. int8, uint8 and binary hold each vector in 8 bits or 1 a number.",
    )
    truncate: bool = Field(
        default=True,
        description="Cut texts past the context length, and name them in `truncated`; false refuses them.",
    )

    def of_texts(self) -> Self:
        """Of texts alone: they have no tokens. Raises InvalidOption for an option about images."""
        self.require_no_images()
        return self.model_copy(update={"output": "pooled"})

    def require_alike(self, images: int, *, form: str) -> None:
        """Of images that stand in one array of this form. Raises InvalidOption if they may differ in shape."""
        if self.tiles and images > 1:
            raise InvalidOption(
                "tiles",
                f"Images are cut into different numbers of views, and an array of {form} holds images that are alike: "
                "send one image a request, or ask /embed for JSON.",
            )

    def request(
        self, sources: Sequence[Source], texts: Sequence[str] = (), *, width: int | None = None
    ) -> EmbedRequest:
        """These images and texts, with these options. width: as of EmbedRequest."""
        return EmbedRequest(
            sources,
            texts,
            model=self.model,
            output=self.output,
            layer=self.layer,
            project=self.project,
            tiles=self.tiles,
            resolution=self.resolution,
            prefix=self.prefix,
            normalize=self.normalize,
            dtype=self.dtype,
            truncate=self.truncate,
            width=width,
        )


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], values: Mapping[str, object]) -> M:
    """Raises InvalidOption, which names the option and what would be right."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from error


def json_options(model: type[M], fields: Mapping[str, object], *, beside: Sequence[str]) -> M:
    """The options out of a JSON object's fields; a null means the default. beside: what the object has beside them.

    Raises InvalidOption, which names the option and what would be right.
    """
    for name in fields:
        if name not in model.model_fields and name not in beside:
            raise InvalidOption.unknown(name, [*beside, *model.model_fields])
    return validated(model, {name: value for name, value in fields.items() if value is not None and name not in beside})


def _invalid(error: ValidationError) -> InvalidOption:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    message = message.replace("Tuple should", "The list should").replace(" after validation", "")
    return InvalidOption(name, f"'{name}' is {shown_value(first['input'])}: {message[:1].lower()}{message[1:]}.")
