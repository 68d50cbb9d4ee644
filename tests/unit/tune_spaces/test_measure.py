"""The comparison against real servers of known temper, and its honesty when the client is the bottleneck."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster.load import StepResult, Target, build_request, null_server, poisson
from tests.unit.cluster.load.conftest import TargetOf, faulty_port, target_of  # noqa: F401 - fixtures
from tune_spaces import measure
from tune_spaces.measure import SMOKE, Bench, Endpoint, Figures, bound_label, compare, settle, summarise


@pytest.fixture
def fast() -> Iterator[Target]:
    with null_server() as (host, port):
        yield Target(host, port, [build_request("POST", "/", host, {}, b"x" * 784)], [b"data"])


def spinning_clock() -> float:
    import time

    return time.process_time()


def test_the_faster_server_wins_and_every_figure_is_there(target_of: TargetOf) -> None:  # noqa: F811
    said: list[str] = []
    protocol = replace(SMOKE, bounds_s=(0.250,), connections=(4,))
    slow, quick = (Endpoint(path, target_of(path), spinning_clock) for path in ("/slow", "/ok"))
    both = compare(slow, quick, protocol, client_cpus=None, server_cpus=None, say=said.append)
    assert 0 < both.before.max_rate < 50, "4 connections and 0.1 s an answer are at most 40 a second"
    assert both.after.max_rate > both.before.max_rate
    assert both.after.latency_p50_s is not None
    assert both.before.latency_p50_s is not None
    assert both.before.latency_p50_s > 0.1 > both.after.latency_p50_s
    assert both.before.error_rate == both.after.error_rate == 0
    assert len(both.before.latency_histograms) == protocol.rounds
    assert json.loads(json.dumps(both.as_dict()))["after"]["max_rate"] == both.after.max_rate
    assert any("equal load" in line for line in said)


def test_a_rate_that_the_client_cannot_hold_is_no_number(fast: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def saturated(*_: object, **__: object) -> object:
        return lambda rate, seed: StepResult(met=True, p99_s=0.001, client_saturated=True, send_lag_p99_s=0.5)

    monkeypatch.setattr(measure, "poisson_steps", saturated)
    figures = Figures(max_rates=[100.0])
    said: list[str] = []
    Bench(SMOKE, None, None, said.append).slo_rates([(Endpoint("x", fast, lambda: 0.0), figures)], 0.05, 1000.0)
    assert figures.slo_rate == {"50ms": None}
    assert any("can't tell" in line for line in said)


def steps_of(capacity: float, asked: list[float]) -> object:
    def make(*_: object, **__: object) -> object:
        def step(rate: float, seed: int) -> StepResult:
            asked.append(rate)
            return StepResult(met=rate <= capacity, p99_s=0.0)

        return step

    return make


@pytest.mark.parametrize("capacity", [9.0, 60.0, 130.0, 700.0])
def test_the_search_follows_a_server_below_and_above_its_closed_loop(
    fast: Target, monkeypatch: pytest.MonkeyPatch, capacity: float
) -> None:
    """A closed loop got 100 req/s out of it; what an open loop gets may be far from that, either way."""
    asked: list[float] = []
    monkeypatch.setattr(measure, "poisson_steps", steps_of(capacity, asked))
    figures = Figures(max_rates=[100.0])
    bench = Bench(replace(SMOKE, steps=5, steps_again=3, seeds=(1, 2, 3)), None, None, lambda line: None)
    bench.slo_rates([(Endpoint("x", fast, lambda: 0.0), figures)], 0.05, 1000.0)
    assert set(figures.slo_rate_per_seed["50ms"]) == {1, 2, 3}
    for rate in figures.slo_rate_per_seed["50ms"].values():
        assert rate <= capacity <= 1.12 * rate
    assert not figures.slo_rate_is_a_floor["50ms"]
    assert max(asked) <= 1000.0


def test_the_client_is_asked_for_no_more_than_it_held(fast: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(measure, "poisson_steps", steps_of(1e9, asked))
    figures = Figures(max_rates=[100.0])
    bench = Bench(SMOKE, None, None, lambda line: None)
    bench.slo_rates([(Endpoint("x", fast, lambda: 0.0), figures)], 0.05, 250.0)
    assert figures.slo_rate_is_a_floor["50ms"]
    assert figures.slo_rate["50ms"] == max(asked) == 250.0


def test_a_client_that_holds_nothing_can_tell_no_rate(
    target_of: TargetOf, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    check = measure.self_check(20.0, 0.2)
    tried: list[float] = []

    def fails(rate: float, *_: object, **__: object) -> object:
        tried.append(rate)
        return replace(check, ok=False, rate=rate)

    monkeypatch.setattr(measure, "self_check", fails)
    endpoints = [Endpoint(name, target_of("/ok"), spinning_clock) for name in ("before", "after")]
    both = compare(*endpoints, SMOKE, client_cpus=None, server_cpus=None, say=lambda line: None)
    assert both.before.slo_rate == both.after.slo_rate == {"50ms": None}
    assert tried == sorted(tried, reverse=True)
    assert both.before.latency_p50_s is not None, "a few requests a second can be told"


def test_a_closed_loop_keeps_the_better_number_of_connections_with_its_cost(target_of: TargetOf) -> None:  # noqa: F811
    said: list[str] = []
    used = iter([0.0, 3.0, 3.0, 4.0])
    figures = Figures()
    bench = Bench(replace(SMOKE, connections=(1, 8), bounds_s=(0.25,)), None, [0], said.append)
    assert bench.server_cores == 1
    endpoint = Endpoint("x", target_of("/slow"), lambda: next(used))
    bench.closed_loop(endpoint, figures)
    assert len(said) == 2
    (rate,), (cost,), (utilisation,) = figures.max_rates, figures.max_rate_costs, figures.utilisations
    assert 10 < rate <= 80, "8 connections at 0.1 s an answer, not one"
    answered = rate * 0.5
    assert cost == pytest.approx(1.0 / answered * 1e6, rel=0.01), "the second run's one second of CPU"
    assert 0 < utilisation < 2.0
    assert (figures.max_rate, figures.core_s_per_million, figures.utilisation) == (rate, cost, utilisation)


def test_an_endpoint_that_answers_nothing_right_has_a_rate_of_nought_and_no_cost(
    target_of: TargetOf  # noqa: F811
) -> None:
    figures = Figures()
    wrong = Endpoint("x", target_of("/ok", expect=[b"another answer"]), spinning_clock)
    Bench(replace(SMOKE, connections=(4,)), None, None, lambda line: None).closed_loop(wrong, figures)
    assert figures.max_rates == [0.0]
    assert figures.core_s_per_million is None


def test_equal_load_counts_every_refusal_and_leaves_the_warm_up_out(target_of: TargetOf) -> None:  # noqa: F811
    protocol = replace(SMOKE, equal_load_s=1.0, warmup_s=0.5)
    figures = Figures()
    bench = Bench(protocol, None, None, lambda line: None)
    judged = bench.equal_load(Endpoint("x", target_of("/ok", "/503"), spinning_clock), figures, 100.0, seed=1)
    (row,) = figures.equal_load_rounds
    assert judged.duration_s == 1.0
    assert row["error_rate"] == pytest.approx(0.5, abs=0.02), "every other request"
    assert row["latency_p50_s"] is None or row["latency_p50_s"] < 0.5
    assert row["latency_p99_s"] is None, "over 1% failed"
    assert len(figures.latency_histograms) == 1


def test_a_round_in_which_nothing_was_due_tells_no_error_rate(target_of: TargetOf) -> None:  # noqa: F811
    protocol = replace(SMOKE, equal_load_s=0.1, warmup_s=0.5)
    figures, rate = Figures(), 5.0
    drawn = ((seed, poisson(rate, 0.6, seed)) for seed in range(100))
    seed = next(seed for seed, arrivals in drawn if len(arrivals) and arrivals.max() < 0.5)
    Bench(protocol, None, None, lambda line: None).equal_load(
        Endpoint("x", target_of("/ok"), spinning_clock), figures, rate, seed
    )
    (row,) = figures.equal_load_rounds
    assert (row["error_rate"], row["latency_p50_s"]) == (None, None)
    summarise(figures)
    assert json.loads(json.dumps(vars(figures), allow_nan=False))["error_rate"] == 0.0


def test_settling_waits_for_prompt_answers_and_gives_up_on_a_dead_server(fast: Target) -> None:
    settle(fast, bound_s=5.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = replace(fast, port=unused.getsockname()[1])
    waiter = threading.Thread(target=settle, args=(dead, 5.0), kwargs={"patience_s": 0.2})
    waiter.start()
    waiter.join(timeout=30)
    assert not waiter.is_alive()


def test_a_round_with_too_many_failures_is_the_worst_round() -> None:
    rounds = [
        {"latency_p50_s": 0.01, "latency_p99_s": p99, "error_rate": 0.0, "core_s_per_million": 5.0}
        for p99 in (0.02, None, 0.03)
    ]
    figures = Figures(equal_load_rounds=rounds)
    summarise(figures)
    assert figures.latency_p99_s == 0.03
    figures.equal_load_rounds = rounds[1:2] * 2 + rounds[:1]
    summarise(figures)
    assert figures.latency_p99_s is None


def test_bounds_have_readable_names() -> None:
    assert [bound_label(b) for b in (0.05, 0.025, 0.0005)] == ["50ms", "25ms", "0.5ms"]
