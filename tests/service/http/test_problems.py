"""The table of problems is whole, and says nothing that is not for callers."""

import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from encoders.contract.errors import ImageError, ImageTooLarge, VisiontowerError, WeightsError
from service import errors
from service.errors import Overloaded
from service.http import errors as http_errors
from service.http import problems
from service.http.errors import BadItem


def family(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ in ("encoders.contract.errors", "service.errors", "service.http.errors"):
            yield from family(child)


ALL = sorted(set(family(VisiontowerError)), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_is_in_the_table_and_documented(cls: type[BaseException]) -> None:
    assert cls in problems.TYPES
    assert cls.__doc__
    assert "\n" not in problems.TYPES[cls].title


def test_the_table_has_no_slug_twice() -> None:
    slugs = [kind.slug for kind in problems.TYPES.values()]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z0-9-]+", slug) for slug in slugs)


@pytest.mark.parametrize("module", [errors, http_errors], ids=lambda module: module.__name__)
def test_the_tree_in_the_docstring_names_every_error_of_its_module(module: ModuleType) -> None:
    own = {cls.__name__ for cls in ALL if cls.__module__ == module.__name__}
    inner = {
        cls.__name__ for cls in ALL for base in cls.__bases__ if base.__module__ != cls.__module__ for cls in [base]
    }
    drawn = set(re.findall(r"[├└]── (\w+)", module.__doc__ or "")) - (inner - own)
    assert drawn == own


def test_facts_are_members() -> None:
    assert problems.problem(ImageTooLarge(pixels=10, limit=5)) == {
        "type": "/problems/image-too-large",
        "title": "Image too large",
        "status": 413,
        "detail": "The image has 10 pixels; the limit is 5. Send it smaller.",
        "actual": 10,
        "limit": 5,
    }


def test_a_plug_in_s_own_error_is_shown_as_its_nearest_kin() -> None:
    class Blurred(ImageError):
        """Of a third party."""

    assert problems.problem(Blurred("too blurred"))["type"] == "/problems/unusable-image"


@pytest.mark.parametrize("error", [ValueError("secret"), VisiontowerError("secret"), WeightsError("/secret/path")])
def test_internals_are_not_shown(error: Exception) -> None:
    problem = problems.problem(error)
    assert problem["status"] == 500
    assert "secret" not in str(problem)


def test_a_fact_cannot_replace_a_member() -> None:
    class Odd(ImageError):
        """With facts named as the members are."""

    problem = problems.problem(Odd("detail", status=200, type="x"))
    assert (problem["status"], problem["type"]) == (422, "/problems/unusable-image")


def test_overload_says_when_to_come_back() -> None:
    error = Overloaded(what="images", waiting=5, limit=5, retry_after_s=7)
    assert problems.headers(error) == {"Retry-After": "7"}


def test_a_bad_item_has_the_status_the_headers_and_the_metric_of_its_cause() -> None:
    full = BadItem("input[3]", Overloaded(what="images", waiting=8, limit=8, retry_after_s=4))
    assert problems.problem_type(full).status == 503
    assert problems.headers(full) == {"Retry-After": "4"}
    assert problems.refusal(full) == "overloaded"
    assert problems.problem(full)["where"] == "input[3]"
