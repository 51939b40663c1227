"""Tensors of BYTES on the wire: the JSON of a body, and the bytes behind it. Knows no name of an input or an output.

With the binary extension a body is JSON, then the bytes of the tensors that say `binary_data_size`, in their order. The
header Inference-Header-Content-Length says how long the JSON is. An element is its length (u32, little-endian) and as
many bytes. https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from service.errors import InvalidOption, shown, shown_value
from service.http.errors import InvalidBody
from service.http.json_body import json_object, kind_of
from service.http.protocol import Incoming

HEADER_LENGTH = "Inference-Header-Content-Length"
_EXAMPLE = '{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": ["..."]}]}'
_LENGTH_BYTES = 4
_DIGITS = 20
"""A length with as many is over any body."""

Tensor: TypeAlias = Mapping[str, Any]
"""An input, or an output that is asked for, as its JSON object."""


@dataclass(frozen=True)
class Message:
    """A body in its two parts. fields: the JSON object. binary: what follows it."""

    fields: Mapping[str, Any]
    binary: bytes | memoryview


def json_bytes(incoming: Incoming) -> int:
    """Of a body: as many as the header says, which `message_of` checks; without one all of it."""
    body, header_length = incoming.body, incoming.headers.get(HEADER_LENGTH.lower())
    if header_length is None or not _is_length(header_length):
        return len(body)
    return min(len(body), int(header_length[:_DIGITS]))


def message_of(body: bytes, *, header_length: str | None) -> Message:
    """header_length: as the header has it; without one all is JSON. Raises InvalidBody."""
    length = len(body)
    if header_length is not None:
        if not _is_length(header_length):
            raise InvalidBody(f"{HEADER_LENGTH} is '{shown(header_length)}', which is no length.")
        length = int(header_length[:_DIGITS])
        if length > len(body):
            raise InvalidBody(f"{HEADER_LENGTH} is {length:,}, and the body has {len(body):,} bytes.")
    return Message(json_object(body[:length], example=_EXAMPLE), memoryview(body)[length:])


def _is_length(header: str) -> bool:
    return header.isascii() and header.isdecimal()


def tensors(fields: Mapping[str, Any], which: str, *, known: Sequence[str]) -> dict[str, Tensor]:
    """The inputs or outputs by name, in order; none if there is no such field. Raises InvalidBody or InvalidOption."""
    listed = fields.get(which)
    if listed is None:
        return {}
    if not isinstance(listed, list):
        raise InvalidBody(f"'{which}' must be a list of tensors, and is {kind_of(listed)}.")
    found: dict[str, Tensor] = {}
    for index, tensor in enumerate(listed):
        if not isinstance(tensor, dict):
            raise InvalidBody(f"'{which}' must be a list of objects. Entry {index} is {kind_of(tensor)}.")
        name = tensor.get("name")
        if not isinstance(name, str) or name not in known:
            raise InvalidOption(
                which, f"{which}[{index}] has the name {shown_value(name)}. There is: {', '.join(known)}."
            )
        if name in found:
            raise InvalidOption(which, f"'{name}' stands twice in '{which}'.")
        found[name] = tensor
    return found


def parameters_of(holder: Mapping[str, Any], *, of: str) -> dict[str, Any]:
    """Of a request or a tensor; none if it has none. of: its name, for errors. Raises InvalidBody."""
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidBody(f"The parameters of {of} must be an object, and are {kind_of(parameters)}.")
    return dict(parameters)


def is_true(value: object, *, name: str) -> bool:
    """A parameter that is true or false. Raises InvalidOption."""
    if not isinstance(value, bool):
        raise InvalidOption(name, f"'{name}' is {shown_value(value)}: expected true or false.")
    return value


def element_count(tensor: Tensor) -> int:
    """How many elements a tensor of BYTES [n] or [n, 1] says it has. Raises InvalidOption."""
    name, datatype = tensor["name"], tensor.get("datatype")
    shape: Any = tensor.get("shape")
    if datatype != "BYTES":
        raise InvalidOption("datatype", f"The input '{name}' has the datatype {shown_value(datatype)}: send BYTES.")
    is_shape = isinstance(shape, list) and len(shape) in (1, 2) and shape[1:] in ([], [1])
    if not is_shape or type(shape[0]) is not int or shape[0] < 0:
        raise InvalidOption("shape", f"The input '{name}' has the shape {shown_value(shape)}: send [n] or [n, 1].")
    count: int = shape[0]
    return count


class Binary:
    """The bytes behind the JSON, taken by one tensor after the other."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._at = 0

    def take(self, tensor: Tensor, size: object, count: int) -> list[bytes]:
        """The elements of the next tensor. size: its bytes, lengths included. Raises InvalidBody."""
        name, left = tensor["name"], len(self._content) - self._at
        if type(size) is not int or not 0 <= size <= left:
            raise InvalidBody(
                f"The input '{name}' has binary_data_size {shown_value(size)}, and {left:,} bytes are left of the body."
            )
        if size < _LENGTH_BYTES * count:  # ahead of a loop over as many elements as somebody says
            raise InvalidBody(f"The input '{name}' has {size:,} bytes, too few for {shown_value(count)} elements.")
        content = self._content[self._at : self._at + size]
        self._at += size
        elements, at = [], 0
        for index in range(count):
            start = at + _LENGTH_BYTES
            end = start + int.from_bytes(content[at:start], "little")
            if end > size or start > size:
                raise InvalidBody(f"The input '{name}' ends within its element {index}.")
            elements.append(bytes(content[start:end]))
            at = end
        if at != size:
            raise InvalidBody(f"The input '{name}' has {size - at:,} bytes behind its {count:,} elements.")
        return elements

    def require_end(self) -> None:
        """Raises InvalidBody if bytes are left."""
        if self._at != len(self._content):
            raise InvalidBody(f"The body has {len(self._content) - self._at:,} bytes behind its last tensor.")


def elements(tensor: Tensor, count: int, binary: Binary) -> Sequence[bytes | str]:
    """The elements of a tensor: bytes out of `binary` if it says `binary_data_size`, else texts out of its `data`.

    Raises InvalidBody.
    """
    name, data = tensor["name"], tensor.get("data")
    parameters = parameters_of(tensor, of=f"the input '{name}'")
    if "binary_data_size" in parameters:
        if data is not None:
            raise InvalidBody(f"The input '{name}' has both 'data' and 'binary_data_size'.")
        return binary.take(tensor, parameters["binary_data_size"], count)
    if not isinstance(data, list):
        raise InvalidBody(f"The 'data' of the input '{name}' must be a list of texts, and is {kind_of(data)}.")
    if len(data) != count:
        raise InvalidBody(f"The input '{name}' has {len(data):,} elements, and its shape says {shown_value(count)}.")
    flat = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]
    for index, each in enumerate(flat):
        if not isinstance(each, str):
            raise InvalidBody(f"Element {index} of the input '{name}' must be a text, and is {kind_of(each)}.")
    return flat
