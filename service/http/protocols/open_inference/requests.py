"""Requests of the Open Inference Protocol -> the engine's. Outputs asked for by name say what is embedded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from service.engine.values import EmbedRequest, ModelsRequest, Output, ReadyRequest, Source
from service.errors import InvalidOption, NoImages, NoTexts, TooManyTexts, shown_value
from service.http.errors import BadItem, InvalidBody, TooManyImages
from service.http.json import NUMBER_BYTES
from service.http.json_body import json_object
from service.http.options import EmbeddingOptions, validated
from service.http.protocol import Asked, Incoming
from service.http.protocols.open_inference.tensors import (
    HEADER_LENGTH,
    Binary,
    element_count,
    elements,
    is_true,
    message_of,
    parameters_of,
    tensors,
)
from service.http.sources import is_base64, source_of
from service.settings import Settings

IMAGES, TEXTS = "images", "texts"
TOKENS, POOLED, TEXT_VECTORS = "tokens", "pooled", "text_vectors"
_OF_IMAGES = (TOKENS, POOLED)
PARAMETERS = tuple(name for name in EmbeddingOptions.model_fields if name not in ("model", "output"))
"""Options that stand in the parameters of a request: the path names the model, and the outputs are tensors."""
_BINARY, _TIMEOUT = "binary_data_output", "timeout"
_MOST_CHARS = 1000
"""Of a parameter that is a text, and of an id."""
_BINARY_BYTES = 8
"""As NUMBER_BYTES, of outputs that follow the JSON."""


@dataclass(frozen=True)
class InferReply:
    """The form of an answer. outputs: in order, and whether each follows the JSON as bytes. id: the caller's own."""

    outputs: Mapping[str, bool]
    id: str | None = None


def read_server(incoming: Incoming) -> Asked:
    """What the server is, or whether it lives: nothing is asked of the engine but to answer."""
    return Asked(ModelsRequest())


def read_server_ready(incoming: Incoming) -> Asked:
    """Whether any model can be asked."""
    return Asked(ReadyRequest())


def read_model(incoming: Incoming) -> Asked:
    """What a model is."""
    return Asked(ModelsRequest(incoming.path["model"]))


def read_model_ready(incoming: Incoming) -> Asked:
    """Whether a model can be asked."""
    model = incoming.path["model"]
    return Asked(ReadyRequest(model), model)


def read_index(incoming: Incoming) -> Asked:
    """All models; with `{"ready": true}` those alone that can be asked. Raises InvalidBody or InvalidOption."""
    fields = json_object(incoming.body, example='{"ready": true}') if incoming.body else {}
    return Asked(ModelsRequest(), is_true(fields.get("ready", False), name="ready"))


def read_infer(incoming: Incoming) -> Asked:
    """Raises InvalidBody, InvalidOption, BadItem, NoImages, NoTexts, TooManyImages or TooManyTexts."""
    settings = incoming.settings
    message = message_of(incoming.body, header_length=incoming.headers.get(HEADER_LENGTH.lower()))
    images, texts = _inputs(message.fields, Binary(message.binary), settings)
    parameters = parameters_of(message.fields, of="the request")
    is_binary = is_true(parameters.pop(_BINARY, False), name=_BINARY)
    timeout_s = _timeout_s(parameters.pop(_TIMEOUT, None))
    outputs = _outputs(message.fields, is_binary=is_binary) or dict.fromkeys(_all_outputs(images, texts), is_binary)
    _require_inputs(outputs, images, texts)
    request = _request(
        outputs, images or [], texts or [], parameters={**_checked(parameters), "model": incoming.path["model"]}
    )
    if timeout_s is not None:
        request = replace(request, timeout_s=min(timeout_s, settings.request_timeout_s))
    reply = InferReply(outputs, _id(message.fields))
    if all(outputs.values()):
        return Asked(request, reply, _BINARY_BYTES)
    return Asked(
        request, reply, NUMBER_BYTES, settings.max_json_values, "ask for outputs with the parameter binary_data"
    )


def _inputs(
    fields: Mapping[str, Any], binary: Binary, settings: Settings
) -> tuple[list[Source] | None, list[str] | None]:
    """Images and texts; None for an input that is not there."""
    inputs = tensors(fields, "inputs", known=(IMAGES, TEXTS))
    images: list[Source] | None = None
    texts: list[str] | None = None
    for name, tensor in inputs.items():
        count = element_count(tensor)
        if name == IMAGES:
            if count > settings.max_images:
                raise TooManyImages(actual=count, limit=settings.max_images)
            images = [
                _source(index, each, most_text=settings.max_json_bytes)
                for index, each in enumerate(elements(tensor, count, binary))
            ]
        else:
            if count > settings.max_texts:
                raise TooManyTexts(actual=count, limit=settings.max_texts)
            texts = [_text(index, each) for index, each in enumerate(elements(tensor, count, binary))]
    binary.require_end()
    if not inputs:
        raise InvalidBody(f"The request has no input: send '{IMAGES}', '{TEXTS}' or both.")
    return images, texts


def _source(index: int, element: bytes | str, *, most_text: int) -> Source:
    """An image's own bytes, or a text that stands for it: clients send those too as bytes.

    most_text: bytes of such a text, which may have as many as in JSON. Raises BadItem.
    """
    if isinstance(element, str):
        return source_of(element)
    beginning = element[:64]
    if not is_base64(beginning) and not beginning.lower().startswith((b"data:", b"http://", b"https://")):
        return element
    if len(element) > most_text:
        reason = f"An image as text has up to {most_text:,} bytes, and this has {len(element):,}: send its own bytes."
        raise BadItem(f"{IMAGES}[{index}]", InvalidBody(reason))
    try:
        return source_of(element.decode())
    except UnicodeDecodeError:
        return element


def _text(index: int, element: bytes | str) -> str:
    if isinstance(element, str):
        return element
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise BadItem(f"{TEXTS}[{index}]", InvalidBody("The text is not UTF-8.")) from error


def _outputs(fields: Mapping[str, Any], *, is_binary: bool) -> dict[str, bool]:
    """Those that are named, and whether they are wanted as bytes. is_binary: where they do not say."""
    named = tensors(fields, "outputs", known=(*_OF_IMAGES, TEXT_VECTORS))
    outputs: dict[str, bool] = {}
    for name, tensor in named.items():
        parameters = parameters_of(tensor, of=f"the output '{name}'")
        if "classification" in parameters:
            raise InvalidOption("classification", f"The output '{name}' has no classes: leave 'classification' out.")
        outputs[name] = is_true(parameters.get("binary_data", is_binary), name="binary_data")
    return outputs


def _all_outputs(images: list[Source] | None, texts: list[str] | None) -> tuple[str, ...]:
    """What these inputs can have."""
    return (*(_OF_IMAGES if images is not None else ()), *((TEXT_VECTORS,) if texts is not None else ()))


def _require_inputs(outputs: Mapping[str, bool], images: list[Source] | None, texts: list[str] | None) -> None:
    """Raises InvalidOption, NoImages or NoTexts for an output of an input that is not there, or is empty."""
    for name in outputs:
        needed, found = (TEXTS, texts) if name == TEXT_VECTORS else (IMAGES, images)
        if found is None:
            raise InvalidOption("outputs", f"The output '{name}' needs the input '{needed}', which is not there.")
        if not found:
            raise (NoTexts if needed == TEXTS else NoImages)(f": the input '{needed}' is empty")


def _checked(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises InvalidOption for a name that is no option, and for a value that no option can have."""
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise InvalidOption.unknown(name, (*PARAMETERS, _BINARY, _TIMEOUT))
        if isinstance(value, list | dict):
            raise InvalidOption(name, f"'{name}' must be a text, a number, true or false.")
        if isinstance(value, str) and len(value) > _MOST_CHARS:
            raise InvalidOption(
                name, f"'{name}' has {len(value):,} characters; no value of it has over {_MOST_CHARS:,}."
            )
    return {name: value for name, value in parameters.items() if value is not None}


def _request(
    outputs: Mapping[str, bool], images: list[Source], texts: list[str], *, parameters: Mapping[str, Any]
) -> EmbedRequest:
    """What these outputs need, and no more. Raises InvalidOption."""
    of_images = [name for name in _OF_IMAGES if name in outputs]
    output: Output = "both"
    if len(of_images) < len(_OF_IMAGES):
        output = "tokens" if of_images == [TOKENS] else "pooled"
    options = validated(EmbeddingOptions, {**parameters, "output": output})
    if of_images:
        options.require_alike(len(images), form="an output")
    else:
        options.require_no_images()
    return options.request(images if of_images else [], texts if TEXT_VECTORS in outputs else [])


def _timeout_s(microseconds: object) -> float | None:
    """Triton's clients give it in microseconds. Raises InvalidOption."""
    if microseconds is None:
        return None
    if type(microseconds) is not int or microseconds <= 0:
        raise InvalidOption(_TIMEOUT, f"'{_TIMEOUT}' is {shown_value(microseconds)}: expected microseconds, over 0.")
    return microseconds / 1e6


def _id(fields: Mapping[str, Any]) -> str | None:
    found = fields.get("id")
    if found is not None and (not isinstance(found, str) or len(found) > _MOST_CHARS):
        raise InvalidOption("id", f"'id' is {shown_value(found)}: expected a text of up to {_MOST_CHARS:,} characters.")
    return found
