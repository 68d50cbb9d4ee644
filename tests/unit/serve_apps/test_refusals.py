"""Each refusal names what happened and its value; who may try again is told when, in the status that fits."""

from __future__ import annotations

import pytest

from cluster.errors import DeadlineExceeded, NotReady, Overloaded, SluiceError
from cluster.scheduling import Quota
from serve_apps import refusals


@pytest.mark.parametrize(
    "refused", [lambda rule: refusals.would_be_late(rule, 3.0, 1.5), lambda rule: refusals.became_late(rule, 3.0)]
)
def test_the_late_are_refused_as_the_rule_says(refused: object) -> None:
    assert callable(refused)
    busy, short = refused("503"), refused("408")
    assert isinstance(busy, Overloaded)
    assert (busy.retry_after_s, "try again in 3 s" in str(busy)) == (3.0, True)
    assert isinstance(short, DeadlineExceeded)
    assert (short.retry_after_s, "give it more time" in str(short)) == (None, True)


@pytest.mark.parametrize(("seconds", "wait_s"), [(0.0, 1.0), (0.1, 4.0)])
def test_a_full_queue_says_how_long_it_takes_to_empty(seconds: float, wait_s: float) -> None:
    error = refusals.full(32, 40, seconds)
    assert error.retry_after_s == wait_s
    assert str(error) == f"32 requests wait already (max_queued_requests=40); try again in {wait_s:g} s"


def test_a_tenant_is_named_but_not_at_length() -> None:
    error = refusals.over_quota("t" * 500, Quota(rate_rps=2.5, burst=4), 0.25)
    assert (error.http_status, error.retry_after_s) == (429, 0.25)
    assert "2.5 requests/s, 4 at once; try again in 0.25 s" in str(error)
    assert len(str(error)) < 220


@pytest.mark.parametrize(
    ("error", "kind"),
    [(refusals.draining(), NotReady), (refusals.closing(), NotReady), (refusals.pushed_out(), Overloaded)],
)
def test_who_did_nothing_wrong_is_asked_to_come_again(error: SluiceError, kind: type[SluiceError]) -> None:
    assert isinstance(error, kind)
    assert error.http_status == 503
    assert "again" in str(error)
