"""The plan: of what keeps the SLO the best by its objective; what differs by less than measurements scatter is decided
by other means, and neither order nor chance has a say."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.planner import choose, holds, plan_of, ranked, score
from cluster.errors import ConfigError
from cluster.plans import Configuration, Plan
from cluster.runtimes.base import RuntimeConfig
from cluster.slo import Objective, Slo
from cluster.studies import LiveFigures, Outcome, Study, StudyHeader, Trial

STORE = Path("/models")
MIB = 1 << 20
NAMES = {"f" * 16: "cnn/fp32", "5" * 16: "cnn/int8"}
LOADED = Slo(rate_rps=400.0)


def configuration(**fields: Any) -> Configuration:
    usual = {"variant_id": "f" * 16, "variant_name": "cnn/fp32", "runtime": RuntimeConfig()}
    return Configuration.model_validate(usual | fields)


def outcome(batch: int = 32, **fields: Any) -> Outcome:
    """`batch` tells outcomes apart."""
    usual: dict[str, Any] = {
        "configuration": configuration(max_batch_size=batch), "accuracy": 0.95, "trials": 1, "slo_rate_rps": 800.0,
        "slo_rates_rps": (800.0,), "max_rate_rps": 1000.0, "latency_p50_s": 0.004, "latency_p99_s": 0.012,
        "attainment": 1.0, "core_s_per_million": 900.0, "memory_bytes": 200 * MIB, "reference_rate_rps": 400.0,
    }  # fmt: skip
    return Outcome(**usual | fields)


rates = st.none() | st.floats(0, 1e4)
outcomes = st.lists(
    st.builds(
        outcome, batch=st.integers(1, 64), accuracy=st.sampled_from([0.93, 0.95]), slo_rate_rps=rates,
        max_rate_rps=st.floats(0, 1e4), latency_p99_s=st.floats(1e-3, 0.2) | st.just(math.inf),
        core_s_per_million=st.none() | st.floats(1, 1e5), memory_bytes=st.none() | st.integers(1, 1 << 31),
    ),
    max_size=8, unique_by=lambda o: o.configuration.key,
)  # fmt: skip
slos = st.builds(
    Slo, rate_rps=st.just(400.0), objective=st.sampled_from(["max_rate", "min_latency", "min_cost"]),
    budget=st.sampled_from([{}, {"memory_mib": 512}]),
) | st.builds(Slo)  # fmt: skip


# Keeping the promise


@pytest.mark.parametrize(
    ("slo", "fields", "kept"),
    [
        (LOADED, {"latency_p99_s": 0.05}, True),  # the bound itself
        (LOADED, {"latency_p99_s": 0.0501}, False),
        (LOADED, {"latency_p99_s": math.inf}, False),
        (LOADED, {"slo_rate_rps": None}, True),
        (Slo(rate_rps=400, latency_p99_ms=10), {}, False),
        (Slo(), {"slo_rate_rps": 0.5, "latency_p99_s": 1.0}, True),  # no load is named: any rate that holds will do
        (Slo(), {"slo_rate_rps": 0.0}, False),
        (Slo(), {"slo_rate_rps": None}, True),  # the client could not tell, but the reference load was held
        (Slo(), {"slo_rate_rps": None, "latency_p99_s": 0.06}, False),
        *((slo.model_copy(update={"budget": slo.budget.model_copy(update={"memory_mib": 200})}), {"memory_bytes": used},
           kept)
          for slo in (LOADED, Slo())
          for used, kept in ((200 * MIB, True), (200 * MIB + 1, False), (None, False))),
        (LOADED, {"memory_bytes": None}, True),
    ],
)  # fmt: skip
def test_what_holds(slo: Slo, fields: dict[str, Any], kept: bool) -> None:
    assert holds(outcome(**fields), slo) is kept


# The objective


@pytest.mark.parametrize(
    ("objective", "better", "worse"),
    [
        ("max_rate", {"slo_rate_rps": 900.0}, {"slo_rate_rps": 800.0, "max_rate_rps": 5000.0}),
        ("max_rate", {"slo_rate_rps": 500.0}, {"slo_rate_rps": None, "max_rate_rps": 5000.0}),  # held 400, no more
        ("max_rate", {"slo_rate_rps": None}, {"slo_rate_rps": 300.0}),
        ("max_rate", {"slo_rate_rps": None}, {"slo_rate_rps": None, "latency_p99_s": 0.06, "max_rate_rps": 5000.0}),
        ("min_latency", {"latency_p99_s": 0.010}, {"latency_p99_s": 0.020, "slo_rate_rps": 5000.0}),
        ("min_cost", {"core_s_per_million": 800.0}, {"core_s_per_million": 900.0, "slo_rate_rps": 5000.0}),
        ("min_cost", {"core_s_per_million": 1e5}, {"core_s_per_million": None, "max_rate_rps": 5000.0}),
        ("min_cost", {"core_s_per_million": None}, {"core_s_per_million": None, "max_rate_rps": 500.0}),
        ("min_cost", {"core_s_per_million": None}, {"core_s_per_million": None, "max_rate_rps": 0.0}),
    ],
)
def test_what_each_objective_prefers(objective: Objective, better: dict[str, Any], worse: dict[str, Any]) -> None:
    slo = Slo(rate_rps=400, objective=objective)
    one, other = outcome(1, **better), outcome(2, **worse)
    assert score(one, slo) > score(other, slo)
    if holds(other, slo):
        assert ranked([other, one], slo) == [one, other]


@given(found=outcomes, slo=slos)
def test_ranked_are_those_that_hold_and_none_before_one_that_is_clearly_better(found: list[Outcome], slo: Slo) -> None:
    order = ranked(found, slo)
    assert sorted(o.configuration.key for o in order) == sorted(o.configuration.key for o in found if holds(o, slo))
    for place, one in enumerate(order):
        best = max(score(o, slo) for o in order[place:])
        assert score(one, slo) >= best - 0.03 * abs(best)


@given(found=outcomes, slo=slos, seed=st.integers(0, 1000))
def test_the_order_of_the_measurements_decides_nothing(found: list[Outcome], slo: Slo, seed: int) -> None:
    shuffled = random.Random(seed).sample(found, len(found))
    assert ranked(shuffled, slo) == ranked(found, slo)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"latency_p99_s": 0.010}, {"latency_p99_s": 0.012, "slo_rate_rps": 820.0}),  # the faster answer
        ({"accuracy": 0.96}, {"slo_rate_rps": 820.0}),  # then the better accuracy
        ({"accuracy": 0.30, "higher_is_better": False}, {"accuracy": 0.31, "higher_is_better": False}),  # less error
        ({"latency_p99_s": 0.01204, "accuracy": 0.96}, {"latency_p99_s": 0.01196}),  # 0.1 ms is no difference
        ({"batch": 8}, {"batch": 16, "slo_rate_rps": 820.0}),  # then the smaller batch
        ({"batch": 16, "slo_rate_rps": 820.0}, {"batch": 16, "number": 1}),  # then the rate after all
    ],
)
def test_what_is_as_good_is_decided_by_other_means(one: dict[str, Any], other: dict[str, Any]) -> None:
    made = []
    for queue, fields in enumerate((one, other), start=512):
        batch = fields.get("batch", 32)
        fields = {name: value for name, value in fields.items() if name not in ("batch", "number")}
        chosen = configuration(max_batch_size=batch, max_queued_requests=queue)
        made.append(outcome(configuration=chosen, **fields))
    for order in (made, made[::-1]):
        assert ranked(order, Slo())[0] == made[0]


def test_of_twins_it_is_always_the_same_one() -> None:
    twins = [outcome(configuration=configuration(max_queued_requests=queue)) for queue in (64, 128, 256, 512, 1024)]
    for number in range(20):
        shuffled = random.Random(number).sample(twins, len(twins))
        assert ranked(shuffled, Slo()) == ranked(twins, Slo())


def test_what_is_clearly_better_is_not_left_for_a_faster_answer() -> None:
    best, fast = outcome(1, slo_rate_rps=1000.0, latency_p99_s=0.040), outcome(2, slo_rate_rps=969.0)
    assert ranked([fast, best], Slo()) == [best, fast]
    near = outcome(3, slo_rate_rps=971.0)
    assert ranked([fast, best, near], Slo()) == [near, best, fast]


# The choice


def study(slo: Slo, *found: Outcome, seed: int = 0) -> Study:
    """Each outcome as one trial, in an order by `seed`."""
    header = StudyHeader(
        name="demo", slo=slo, variants=NAMES, accuracies={key: {"onnxruntime": 0.95} for key in NAMES}, protocol={},
        cpus={}, hardware={}, hardware_key="a machine", command="", created_at="",
    )  # fmt: skip
    trials = [
        Trial(
            number=number, configuration=o.configuration, origin="grid", seed=1, started_at="", took_s=1.0,
            figures=LiveFigures(
                max_rate_rps=o.max_rate_rps, slo_rate_rps=o.slo_rate_rps, reference_rate_rps=o.reference_rate_rps,
                latency_p50_s=o.latency_p50_s, latency_p99_s=None if math.isinf(o.latency_p99_s) else o.latency_p99_s,
                attainment=o.attainment, error_rate=0.0, core_s_per_million=o.core_s_per_million,
                memory_bytes=o.memory_bytes, client_cpu_share=0.1,
            ),
        )
        for number, o in enumerate(random.Random(seed).sample(found, len(found)), start=1)
    ]  # fmt: skip
    return Study(header, tuple(trials))


def test_the_plan_deploys_the_best_and_says_what_was_measured() -> None:
    best, other = outcome(8, slo_rate_rps=900.0), outcome(16)
    slo = Slo(model_name="digits")
    plan = choose(study(slo, other, best), store=STORE, predicted={"capacity_rps": 1100.0, "never": math.inf})
    assert plan.key == best.configuration.key
    assert (plan.model_name, plan.store, plan.num_cpus_per_replica) == ("digits", "/models", 1.0)
    assert Slo.model_validate(plan.slo) == slo
    assert plan.predicted == {"capacity_rps": 1100.0, "never": None}
    assert plan.measured == {
        "slo_rate_rps": 900.0, "max_rate_rps": 1000.0, "latency_p50_s": 0.004, "latency_p99_s": 0.012, "accuracy": 0.95,
        "core_s_per_million": 900.0, "memory_bytes": 200 * MIB, "trials": 1,
    }  # fmt: skip
    assert plan.made_by == "study demo: best of 2 configurations measured live by max_rate"


@given(found=outcomes, slo=slos, seed=st.integers(0, 1000))
def test_the_choice_is_the_same_in_whatever_order_the_trials_came(found: list[Outcome], slo: Slo, seed: int) -> None:
    orders = study(slo, *found), study(slo, *found, seed=seed)
    if not any(holds(o, slo) for o in found):
        said = set()
        for each in orders:
            with pytest.raises(ConfigError) as caught:
                choose(each, store=STORE)
            said.add(str(caught.value))
        assert len(said) == 1
        return
    one, other = (choose(each, store=STORE) for each in orders)
    assert one == other
    as_studied = [dataclasses.replace(o, accuracy=0.95) for o in found]  # as the study's header has it for all
    assert one.key == ranked(as_studied, slo)[0].configuration.key
    assert Plan.model_validate_json(one.model_dump_json()) == one


def test_each_replica_asks_for_the_cores_that_its_runtime_keeps_busy() -> None:
    runtime = RuntimeConfig(name="openvino", threads=2, streams=3)
    plan = plan_of(
        configuration(runtime=runtime, num_replicas=2), model_name="m", store=STORE, made_by="hand",
        default_timeout_s=0.5,
    )  # fmt: skip
    assert (plan.num_cpus_per_replica, plan.num_replicas, plan.default_timeout_s) == (6.0, 2, 0.5)
    assert plan.key == configuration(runtime=runtime, num_replicas=2).key
    copied = plan_of(plan, model_name="n", store=STORE, made_by="another's plan")
    assert (copied.key, copied.model_name, copied.default_timeout_s) == (plan.key, "n", None)


# Nothing holds


@pytest.mark.parametrize(
    ("slo", "found", "said"),
    [
        (LOADED, [], r"no configuration could be measured; the trials' files say why"),
        (
            LOADED,
            [outcome(1, latency_p99_s=0.08), outcome(2, latency_p99_s=0.06), outcome(4, latency_p99_s=math.inf)],
            r"none of 3 configurations holds 400 req/s with p99 within 50 ms; nearest: cnn/fp32 on onnxruntime, "
            r"max_batch_size 2, .*, p99 60\.0 ms at 400 req/s, at most 1,000 req/s, 200 MiB; give it more cores, a "
            r"lower rate or a longer bound",
        ),
        (
            Slo(rate_rps=400, budget={"memory_mib": 100}),
            [outcome(1), outcome(2, latency_p99_s=0.011)],
            r"within 50 ms and 100 MiB; nearest: .*max_batch_size 2, .* 200 MiB; give it more memory$",
        ),
        (  # what is within the budget is nearer
            Slo(rate_rps=400, budget={"memory_mib": 300}),
            [outcome(1, memory_bytes=301 * MIB), outcome(2, latency_p99_s=0.08), outcome(4, memory_bytes=None)],
            r"nearest: .*max_batch_size 2, .*p99 80\.0 ms .* longer bound",
        ),
        (
            Slo(),
            [outcome(1, slo_rate_rps=0.0, latency_p99_s=math.inf, reference_rate_rps=55.0)],
            r"none of 1 configurations holds any rate with p99 within 50 ms; nearest: .*, over 1% failed at 55 req/s",
        ),
    ],
)
def test_where_nothing_holds_the_nearest_is_named(slo: Slo, found: list[Outcome], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose(study(slo, *found), store=STORE)


def test_a_plan_of_a_model_with_an_error_says_which() -> None:
    measured = study(Slo(), outcome(8))
    header = measured.header.model_copy(update={"metric": "mse", "higher_is_better": False})
    plan = choose(Study(header, measured.trials), store=STORE)
    assert plan.measured["mse"] == 0.95
    assert "accuracy" not in plan.measured
