"""Images and texts in one list, as several protocols have them: apart for the engine, together again for the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from encoders.contract.errors import VisiontowerError
from service.engine.values import Embedding, EmbedResult, Numbers, Source
from service.errors import InvalidOption, LimitExceeded
from service.http.errors import BadItem, TooManyImages
from service.http.sources import source_of
from service.settings import Settings


@dataclass(frozen=True)
class ImageText:
    """The text that stands for an image: base64, a data: URI, or a URL."""

    text: str


Item: TypeAlias = ImageText | str
"""An image, or a text."""


@dataclass(frozen=True)
class Items:
    """What an engine embeds, and the order it was asked for in.

    where: what the caller calls each item, in order. is_text: of each item, in order. Answers of these protocols have
    no place for the error of one item, so that it refuses the request.
    """

    where: Sequence[str]
    is_text: Sequence[bool]
    sources: Sequence[Source]
    texts: Sequence[str]

    @classmethod
    def of(cls, items: Mapping[str, Item], settings: Settings) -> "Items":
        """items: by what the caller calls them. Raises TooManyImages, or BadItem for a text that is too long."""
        images = [item.text for item in items.values() if isinstance(item, ImageText)]
        if len(images) > settings.max_images:
            raise TooManyImages(actual=len(images), limit=settings.max_images)
        for where, item in items.items():
            if isinstance(item, str) and len(item) > settings.max_text_chars:
                reason = f"The text has {len(item):,} characters, over {settings.max_text_chars:,}."
                raise BadItem(where, InvalidOption(where, reason))
        texts = [item for item in items.values() if isinstance(item, str)]
        is_text = [isinstance(item, str) for item in items.values()]
        return cls(list(items), is_text, [source_of(image) for image in images], texts)

    def arrays(self, result: EmbedResult) -> list[Numbers]:
        """Of each item, in order, its vector [width]; of an image its tokens [tokens, width], if they were asked for.

        Raises BadItem for an image that could not be used.
        """
        images, texts = iter(result.items), iter(result.texts)
        arrays: list[Numbers] = []
        for where, is_text in zip(self.where, self.is_text, strict=True):
            if is_text:
                arrays.append(next(texts))
                continue
            image = next(images)
            if isinstance(image, VisiontowerError):
                raise BadItem(where, image)
            arrays.append(_array(image))
        return arrays

    def truncated(self, result: EmbedResult) -> list[int]:
        """Indices of the items whose text was cut."""
        places = [index for index, is_text in enumerate(self.is_text) if is_text]
        return [places[text] for text in result.truncated]


def require_few(items: Sequence[object], settings: Settings) -> None:
    """Ahead of a look at each. Raises LimitExceeded for more than a request may have of images and texts together."""
    most = settings.max_images + settings.max_texts
    if len(items) > most:
        raise LimitExceeded(
            f"{len(items):,} images and texts in one request; the limits are {settings.max_images:,} images and "
            f"{settings.max_texts:,} texts.",
            actual=len(items),
            limit=most,
        )


def _array(image: Embedding) -> Numbers:
    found = image.pooled if image.tokens is None else image.tokens
    assert found is not None, "one of them was asked for"
    return found
