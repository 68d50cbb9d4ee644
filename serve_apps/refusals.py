"""What a request is told that is not executed: what happened, and where that helps, when to try again.

    batcher: this one would be late -> late("503", why, needs_s) -> Overloaded, with Retry-After
                                       late("408", why, needs_s) -> DeadlineExceeded, without

Who is refused is for others to decide (serve_apps/batcher.py, cluster/control/); here it is said. `rule` is
`Scheduling.late`.
"""

from __future__ import annotations

import math
from typing import Literal

from cluster.errors import DeadlineExceeded, NotReady, Overloaded, QuotaExceeded, SluiceError
from cluster.scheduling import Quota

Rule = Literal["503", "408"]
NOT_EXECUTED = "the timeout ran out before the request was executed"
UNEXPECTED = "internal error; the replica's log has the details"


def told(error: SluiceError) -> tuple[str, int | None]:
    """(what a client is told of it, in how many whole seconds it may try again), over whichever wire."""
    retry_after_s = getattr(error, "retry_after_s", None)
    text = str(error).encode(errors="replace").decode()  # an executor may say what is no text
    return text, None if retry_after_s is None else max(1, math.ceil(retry_after_s))


def over_quota(tenant: str, quota: Quota, wait_s: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"tenant {tenant[:100]!r} sent more than its quota of {quota.rate_rps:g} requests/s, {quota.burst:g} at once; "
        f"try again in {wait_s:.3g} s",
        retry_after_s=wait_s,
    )


def would_be_late(rule: Rule, needs_s: float, timeout_s: float) -> SluiceError:
    """By the forecast, when it comes."""
    return _late(rule, f"it would be done in about {needs_s:.3g} s, and its timeout is {timeout_s:.3g} s", needs_s)


def became_late(rule: Rule, left_s: float) -> SluiceError:
    """It waited, and `left_s` are not enough to execute it."""
    return _late(rule, f"{left_s:.3g} s before its timeout it could not be executed any more", left_s)


def _late(rule: Rule, why: str, needs_s: float) -> SluiceError:
    if rule == "408":
        return DeadlineExceeded(f"{why}; give it more time, or send it when there is less to do")
    return Overloaded(f"{why}; try again in {needs_s:.3g} s", retry_after_s=needs_s)


def full(waiting: int, places: int, seconds_per_request: float) -> Overloaded:
    wait_s = max(1.0, math.ceil(waiting * seconds_per_request))
    return Overloaded(
        f"{waiting} requests wait already (max_queued_requests={places}); try again in {wait_s:g} s",
        retry_after_s=wait_s,
    )


def pushed_out() -> Overloaded:
    return Overloaded("a request of a higher class needed this one's place; try again later")


def draining() -> NotReady:
    return NotReady("this replica is draining; send the request again, another one will take it")


def closing() -> NotReady:
    return NotReady("this replica is shutting down; send the request again")
