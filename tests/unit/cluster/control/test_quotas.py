"""Token buckets: a burst, then the rate, and bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.control.quotas import Buckets
from cluster.scheduling import Scheduling


def buckets(**fields: object) -> Buckets:
    return Buckets(Scheduling.model_validate(fields))


@given(
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=100), rate=st.floats(0.1, 50), burst=st.integers(1, 10),
)  # fmt: skip
def test_never_more_than_burst_and_rate_allow_and_who_waits_as_told_is_served(
    gaps: list[float], rate: float, burst: int
) -> None:
    bucket = buckets(quota={"rate_rps": rate, "burst": burst})
    now = 0.0
    for taken, gap in enumerate(gaps, 1):
        now += gap
        wait_s = bucket.take("t", now)
        if wait_s > 0:
            now += wait_s
            assert bucket.take("t", now) == 0
        assert taken <= burst + rate * now + 1e-6 * taken + 1e-6


def test_each_tenant_has_its_own_and_who_is_named_another() -> None:
    bucket = buckets(quota={"rate_rps": 1, "burst": 1}, tenants={"large": {"rate_rps": 10, "burst": 3}})
    assert [bucket.take("a", 0.0) > 0 for _ in range(2)] == [False, True]
    assert [bucket.take("b", 0.0) > 0 for _ in range(2)] == [False, True]
    assert [bucket.take("large", 0.0) > 0 for _ in range(4)] == [False, False, False, True]
    assert bucket.take("a", 0.5) == 0.5


def test_without_a_default_only_the_named_are_bounded() -> None:
    bucket = buckets(tenants={"small": {"rate_rps": 1, "burst": 1}})
    assert not any(bucket.take("other", 0.0) for _ in range(100))
    assert [bucket.take("small", 0.0) > 0 for _ in range(2)] == [False, True]
    assert len(bucket) == 1


def test_the_longest_silent_is_forgotten() -> None:
    bucket = buckets(quota={"rate_rps": 0.001, "burst": 1}, max_tenants=2)
    for tenant in ("a", "b", "a", "c"):
        bucket.take(tenant, 0.0)
    assert len(bucket) == 2
    assert bucket.take("a", 0.0) > 0, "was heard of after b"
    assert bucket.take("b", 0.0) == 0
