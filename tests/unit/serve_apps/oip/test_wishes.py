"""What a request asks for beside its answer, in parameters and in headers."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import InvalidRequest
from serve_apps.oip.wishes import NONE, Wishes, in_headers, wishes


def test_nothing_said_is_nothing_wished() -> None:
    assert wishes({}) == wishes({"mine": 1}) == in_headers({b"host": b"h"}) == NONE


def test_parameters_in_triton_s_units_and_ours() -> None:
    said = {"timeout": 2_500_000, "priority": "3", "accuracy": "fast", "tenant": "acme", "mine": [1]}
    assert wishes(said) == Wishes(2.5, 3, "fast", "acme")
    assert wishes({"accuracy": 0.9}).accuracy == wishes({"accuracy": "0.9"}).accuracy == 0.9
    assert wishes({"accuracy": 1}).accuracy == 1.0


def test_headers_say_the_same_and_parameters_win() -> None:
    headers = {b"sluice-timeout": b"2500000", b"sluice-priority": b"3", b"sluice-accuracy": b"0.9",
               b"sluice-tenant": b"acme"}  # fmt: skip
    said = in_headers(headers)
    assert said == Wishes(2.5, 3, 0.9, "acme")
    assert wishes({"priority": 1, "accuracy": "best"}, said) == Wishes(2.5, 1, "best", "acme")


@pytest.mark.parametrize(
    ("value", "timeout_s"),
    [(b"1.5", 1.5), (b"0", None), (b"-1", None), (b"soon", None), (b"nan", None), (b"inf", None)],
)
def test_serve_s_own_timeout_header_is_obeyed_as_serve_does(value: bytes, timeout_s: float | None) -> None:
    assert in_headers({b"x-request-timeout-seconds": value}).timeout_s == timeout_s


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", -1), ("timeout", 1.5), ("timeout", "soon"), ("timeout", True), ("priority", "-1"),
        ("priority", 1 << 62), ("accuracy", "better"), ("accuracy", "nan"), ("accuracy", float("inf")),
        ("accuracy", [0.9]), ("accuracy", True), ("tenant", ""), ("tenant", 7), ("tenant", "x" * 129),
    ],
)  # fmt: skip
def test_what_is_no_wish_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"parameter {name}="):
        wishes({name: value})
