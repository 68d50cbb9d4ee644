"""The tree in the docstring is the tree of classes, statuses and all."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from cluster import errors
from cluster.errors import NotReady, Overloaded, QuotaExceeded, SluiceError

LINE = re.compile(r"(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<status>\d{3})(?P<rest>.*)")
CLASSES = {
    name: each for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, SluiceError)
}


def drawn() -> dict[str, tuple[str | None, int, str]]:
    """Name -> (its parent's name, its status, what is written behind), read off the docstring."""
    tree: dict[str, tuple[str | None, int, str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := LINE.fullmatch(line):
            depth = len(match["branch"]) // 4
            path = [*path[:depth], match["name"]]
            tree[match["name"]] = (path[-2] if depth else None, int(match["status"]), match["rest"])
    return tree


def test_every_class_is_drawn_and_nothing_else() -> None:
    assert drawn().keys() == CLASSES.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_parent_and_status_are_as_drawn(name: str) -> None:
    parent, status, rest = drawn()[name]
    each = CLASSES[name]
    assert each.http_status == status
    assert each.__bases__[0].__name__ == (parent or "Exception")
    assert issubclass(each, ValueError) == (issubclass(each, errors.InvalidRequest))
    assert ("retry_after_s" in rest) == hasattr(each("what"), "retry_after_s")


@pytest.mark.parametrize("name", CLASSES)
def test_each_says_its_message_and_survives_the_trip_through_ray(name: str) -> None:
    """Ray pickles exceptions between its own processes."""
    error = CLASSES[name]("what, the value, the way out")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is CLASSES[name]
    assert str(copy) == "what, the value, the way out"


@pytest.mark.parametrize("each", [Overloaded, NotReady, QuotaExceeded])
def test_retry_after_survives_too(each: type[Overloaded | NotReady | QuotaExceeded]) -> None:
    assert each("later").retry_after_s == 1.0
    assert pickle.loads(pickle.dumps(each("later", retry_after_s=7.5))).retry_after_s == 7.5
