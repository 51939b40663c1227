"""Values -> JSON bytes."""

import orjson


def to_json(value: object) -> bytes:
    """JSON; float arrays as nested lists, each number in the fewest digits that give it back."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
