"""Fixed rates: what h2load's log says, which rate counts, and (where it is installed) h2load itself."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.serving import h2load
from benchmarks.serving.h2load import Paced
from cluster.errors import SluiceError
from cluster.load import Target, build_request, null_server


def test_a_log_is_judged_after_the_warm_up() -> None:
    slow = [f"{int(k * 1e4)}\t200\t900000" for k in range(100)]  # of the first second, which does not count
    good = [f"{int(1e6 + k * 1e4)}\t200\t{1000 + k}" for k in range(99)]
    log = "\n".join([*slow, *good, "1990000\t503\t10", "2000000\t200\t9000000"])
    found = h2load.judge(log, offered_rps=100.0, seconds=1.0, begun_s=1.0)
    assert (found.rate_rps, found.answers, found.failed) == (99.0, 100, 1)
    assert found.p99_s == pytest.approx(1.098e-3)
    assert found.holds(0.025)
    worse = h2load.judge(log.replace("\t200\t1098", "\t500\t1098"), offered_rps=100.0, seconds=1.0, begun_s=1.0)
    assert worse.p99_s == float("inf")
    assert not worse.holds(1.0)


def test_a_server_that_falls_behind_does_not_hold_whatever_its_percentiles_say() -> None:
    assert not Paced(1000.0, 980.0, 0.001, 0.002, 980, 0).holds(0.05)


def test_no_answer_is_an_error() -> None:
    with pytest.raises(SluiceError, match="no answer"):
        h2load.judge("", 10.0, 1.0, 0.0)


def test_the_highest_rate_that_holds_counts_for_each_bound() -> None:
    asked = []

    def measure(rate: float) -> Paced:
        asked.append(rate)
        p99_s = 0.001 / (1 - rate / 1001) if rate < 1001 else float("inf")
        return Paced(rate, rate, 0.001, p99_s, 100, 0)

    rates, seen = h2load.search(measure, 1000.0, (0.050, 0.008))
    assert rates == {0.050: 950.0, 0.008: 850.0}
    assert asked == [1000.0, 950.0, 900.0, 850.0] == [each.offered_rps for each in seen]
    none, seen = h2load.search(lambda rate: Paced(rate, 0.0, 1.0, 1.0, 1, 0), 1000.0, (0.05,))
    assert none == {0.05: 0.0}
    assert len(seen) == len(h2load.SHARES)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed here (apt: nghttp2-client)")
def test_h2load_sends_at_the_rate_that_it_is_told() -> None:
    with null_server() as (host, port):
        target = Target(host, port, [build_request("POST", "/x", host, {"content-type": "text/plain"}, b"body")])
        found = h2load.run(target, rate_rps=2560.0, seconds=2.0, warmup_s=0.5, cores=[])
    assert found.failed == 0
    assert found.rate_rps == pytest.approx(2560.0, rel=0.1)
    assert 0 < found.p50_s <= found.p99_s
