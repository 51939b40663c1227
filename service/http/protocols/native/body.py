"""A JSON object or a form -> images (still bytes, or a URL) and fields. Decodes no image.

An error of one image stands at its index; an error of the whole request is raised.
"""

from dataclasses import dataclass, field

from service.engine.values import Source
from service.http.errors import InvalidBody, TooManyImages
from service.http.form import form_parts
from service.http.json_body import json_object, kind_of
from service.http.protocols.native.hints import IMAGES_GO, as_image
from service.http.sources import source_of


@dataclass(frozen=True)
class Body:
    """What a body held. fields: name and value, in order, repeated names included; texts in forms, any type in JSON."""

    images: list[Source] = field(default_factory=list)
    fields: list[tuple[str, object]] = field(default_factory=list)


def json_body(body: bytes, *, max_images: int) -> Body:
    """Of a JSON object. Raises InvalidBody or TooManyImages."""
    fields = json_object(body, example='{"images": [...]}')
    images = fields.pop("images", [])
    if not isinstance(images, list):
        raise InvalidBody(f"'images' must be a list, of one image too, and is {kind_of(images)}.")
    for index, image in enumerate(images):
        if not isinstance(image, str):
            raise InvalidBody(
                f"'images' must be a list of strings: base64, data: URIs or http(s) URLs. Entry {index} is "
                f"{kind_of(image)}."
            )
    if len(images) > max_images:
        raise TooManyImages(actual=len(images), limit=max_images)
    return Body(images=[source_of(image) for image in images], fields=list(fields.items()))


def form_body(body: bytes, *, content_type: str, max_images: int) -> Body:
    """Of a multipart form. Raises InvalidBody, InvalidOption or TooManyImages."""
    images: list[Source] = []
    fields: list[tuple[str, object]] = []
    for part in form_parts(body, content_type=content_type):
        if part.name == "image":
            images.append(as_image(part.content) if part.content[:16].isascii() else part.content)
        else:
            fields.append((part.name, part.text(advice=IMAGES_GO)))
    if len(images) > max_images:
        raise TooManyImages(actual=len(images), limit=max_images)
    return Body(images=images, fields=fields)
