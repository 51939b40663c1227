"""Which cases of a parametrised test are of `make test`, and which of `make test-slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def split(cases: Iterable[Any], *, quick: Iterable[Any]) -> list[pytest.ParameterSet]:
    """All the cases, as parameters; those that are not among the quick ones are marked slow.

    A case is the tuple of its arguments, or its one argument. A quick one that is no case is an error: renamed, it
    would leave `make test` unnoticed.
    """
    found, few = list(cases), list(quick)
    unknown = [case for case in few if case not in found]
    assert not unknown, unknown
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in few else (pytest.mark.slow,))
        for case in found
    ]
