"""A row that is kept: arrays of its own that nobody can write to, and when it was made. As bytes it has a checksum."""

import hashlib
import json
import math
from typing import NamedTuple

import ml_dtypes  # noqa: F401  # tells NumPy of bfloat16
import numpy as np

from encoders.contract.values import Encoded, Floats, Grid

_ENTRY_BYTES = 800
"""Of an entry beside its arrays: about."""
_CHECK_BYTES = 16
_LENGTH_BYTES = 4


class KeptRow(NamedTuple):
    """made: seconds since the epoch."""

    row: Encoded
    made: float

    @property
    def nbytes(self) -> int:
        """Of host memory, about."""
        return _ENTRY_BYTES + nbytes_of(self.row)


def nbytes_of(row: Encoded) -> int:
    """Bytes of its arrays."""
    return sum(array.nbytes for array in (row.tokens, row.pooled) if array is not None)


def seal(row: Encoded) -> None:
    """Let nobody write to its arrays: several callers get the same ones."""
    for array in (row.tokens, row.pooled):
        if array is not None:
            array.flags.writeable = False


def copied(row: Encoded) -> Encoded | None:
    """The row in arrays of its own: it is a view into its whole batch's. None if a number is not finite."""
    if not all(array is None or np.isfinite(array).all() for array in (row.tokens, row.pooled)):
        return None
    tokens, pooled = (None if array is None else array.copy(order="C") for array in (row.tokens, row.pooled))
    copy = Encoded(row.grid, row.prefix_tokens, tokens, pooled)
    seal(copy)
    return copy


def to_bytes(key: bytes, kept: KeptRow) -> bytes:
    """A checksum, the length of the head, the head in JSON, and the arrays, C-contiguous, in the machine's order."""
    row = kept.row
    arrays = {"tokens": row.tokens, "pooled": row.pooled}
    shapes = {name: [each.dtype.name, *each.shape] for name, each in arrays.items() if each is not None}
    grid, prefix = list(map(int, row.grid)), int(row.prefix_tokens)  # an encoder may count with NumPy
    about = {"made": kept.made, "grid": grid, "prefix": prefix, "arrays": shapes}
    head = json.dumps(about).encode()
    body = b"".join(
        [
            len(head).to_bytes(_LENGTH_BYTES, "little"),
            head,
            *(each.tobytes() for each in arrays.values() if each is not None),
        ]
    )
    return _checksum(key, body) + body


def from_bytes(key: bytes, value: bytes) -> KeptRow | None:
    """What `to_bytes` was given under this key; None for anything else. The arrays are views into the bytes."""
    body = memoryview(value)[_CHECK_BYTES:]
    if value[:_CHECK_BYTES] != _checksum(key, body):
        return None
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    about = json.loads(bytes(body[_LENGTH_BYTES:end]))
    arrays: dict[str, Floats] = {}
    for name, (dtype, *shape) in about["arrays"].items():
        count = math.prod(shape)
        arrays[name] = np.frombuffer(body, np.dtype(dtype), count, offset=end).reshape(shape)
        end += arrays[name].nbytes
    row = Encoded(Grid(*about["grid"]), about["prefix"], arrays.get("tokens"), arrays.get("pooled"))
    return KeptRow(row, about["made"])


def _checksum(key: bytes, body: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(key, digest_size=_CHECK_BYTES)
    digest.update(body)
    return digest.digest()
