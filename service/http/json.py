"""Values -> JSON bytes."""

from collections.abc import Callable
from functools import partial

import orjson

to_json: Callable[[object], bytes] = partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY)
"""JSON; float arrays as nested lists, each number in the fewest digits that give it back."""
