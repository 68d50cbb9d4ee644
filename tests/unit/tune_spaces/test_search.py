"""The search's own decisions, on a server simulated from profiles (tests/integration/test_tune.py has a real one)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.control.planner import ranked
from cluster.errors import ClusterError
from cluster.load import Target
from cluster.plans import Configuration
from cluster.runtimes import RuntimeConfig
from cluster.slo import Slo
from cluster.studies import LiveFigures, Study, StudyStore
from tests.unit.tune_spaces.report import made
from tune_spaces.live import TRIAL_PROTOCOLS, LiveDeployment
from tune_spaces.search import Recorder, Search, SearchBudget, front_cost, grid, progress, told, worth
from tune_spaces.spaces import SearchSpace, search_space

SLO = Slo()
VARIANTS = made.variants()
ORT, OV = RuntimeConfig(name="onnxruntime"), RuntimeConfig(name="openvino")


@dataclass(frozen=True)
class Simulated(LiveDeployment):
    """Answers as made.figures says, but for the runtime that it cannot load."""

    cannot_load: str = ""

    def measure(self, configuration: Configuration, *arguments: Any, seed: int, **more: Any) -> LiveFigures:
        if configuration.runtime.name == self.cannot_load:
            raise ClusterError(f"{self.cannot_load} is broken here")
        found = made.figures(configuration, configuration.variant_name.rsplit("/", 1)[-1], seed)
        return found.model_copy(
            update={
                "memory_bytes": more["memory_bytes"],
                "reference_rate_rps": more["reference_rate_rps"] or self.reference_rate_rps(found.max_rate_rps),
                "slo_rate_rps": None if found.max_rate_rps * 1.2 < more["best_rps"] else found.slo_rate_rps,
            }
        )


@pytest.fixture
def space() -> SearchSpace:
    curves = [made.curve(VARIANTS[name], runtime) for name in ("fp32", "int8") for runtime in (ORT, OV)]
    return search_space(list(VARIANTS.values()), curves, SLO, cores=1)


@pytest.fixture
def recorder(space: SearchSpace, tmp_path: Path) -> Recorder:
    store = StudyStore(tmp_path / "study")
    store.open(made.study(VARIANTS, SLO).header)
    deployment = Simulated(
        dashboard_address="", host="", port=0, slo=SLO, store=tmp_path, target=Target("", 0, [b"x"]),
        first=space.configurations()[0], server_cpus=None, client_cpus=None, client_holds_rps=1e4, supervisor_pid=0,
    )  # fmt: skip
    return Recorder(deployment, TRIAL_PROTOCOLS["smoke"], store, space, empty_replica_bytes=200 << 20)


def of(space: SearchSpace, name: str, runtime: RuntimeConfig, batch: int) -> Configuration:
    return next(
        c for c in space.configurations()
        if (c.variant_id, c.runtime, c.max_batch_size) == (VARIANTS[name].id, runtime, batch)
    )  # fmt: skip


def searching(recorder: Recorder, budget: SearchBudget, said: list[str] | None = None) -> Study:
    lines = said if said is not None else []
    baseline = of(recorder.space, "fp32", ORT, 1)
    return Search(recorder, budget, baseline, ray_address="", say=lines.append).run()


def test_a_trial_is_kept_with_its_seed_origin_and_memory(recorder: Recorder) -> None:
    configuration = of(recorder.space, "int8", OV, 16)
    recorder.measure(configuration, "profiles")
    study = recorder.measure(configuration, "confirm")
    assert [(t.number, t.seed, t.origin) for t in study.trials] == [(1, 1, "profiles"), (2, 2, "confirm")]
    figures = study.trials[0].figures
    assert figures is not None
    assert figures.memory_bytes == (200 << 20) + (60 << 20)
    assert recorder.store.read() == study


def test_all_trials_are_compared_at_the_load_of_the_first(recorder: Recorder) -> None:
    recorder.measure(of(recorder.space, "fp32", ORT, 1), "baseline")
    study = recorder.measure(of(recorder.space, "int8", OV, 64), "profiles")
    assert len({t.figures.reference_rate_rps for t in study.trials if t.figures}) == 1


def test_what_cannot_be_served_is_a_trial_with_its_reason(recorder: Recorder) -> None:
    assert isinstance(recorder.deployment, Simulated)
    broken = replace(recorder, deployment=replace(recorder.deployment, cannot_load="openvino"))
    study = broken.measure(of(recorder.space, "int8", OV, 8), "optuna")
    assert study.trials[0].figures is None
    assert study.trials[0].error == "openvino is broken here"
    assert "openvino is broken here" in told(study.trials[0])
    study = broken.measure(of(recorder.space, "int8", ORT, 8), "optuna")
    assert study.trials[1].figures is not None


def test_a_search_begins_with_the_baseline_and_confirms_the_best(recorder: Recorder) -> None:
    said: list[str] = []
    study = searching(recorder, SearchBudget(trials=1, finalists=1, confirmations=2), said)
    assert [trial.origin for trial in study.trials] == ["baseline", "confirm", "confirm"]
    assert "best so far" in said[0]
    assert "min left" in said[0]


def test_a_finished_search_measures_nothing_more(recorder: Recorder) -> None:
    budget = SearchBudget(trials=4, finalists=2, confirmations=1)
    for batch in (1, 8, 16, 32):
        recorder.measure(of(recorder.space, "fp32", ORT, batch), "baseline" if batch == 1 else "optuna")
    first = searching(recorder, budget)
    assert [trial.origin for trial in first.trials[4:]] == ["confirm", "confirm"]
    assert len({trial.configuration.key for trial in first.trials[4:]}) == 2
    assert searching(recorder, budget) == first


def test_no_trial_begins_after_its_time(recorder: Recorder) -> None:
    study = searching(recorder, SearchBudget(trials=8, time_s=0.0))
    assert [trial.origin for trial in study.trials] == ["baseline"]


def test_the_promising_ones_are_of_every_variant_and_runtime(recorder: Recorder) -> None:
    search = Search(recorder, SearchBudget(promising=4), of(recorder.space, "fp32", ORT, 1), ray_address="", say=print)
    found = search.promising(recorder.store.read())
    assert len({(c.variant_id, c.runtime) for c in found}) == 4


def test_worth_puts_every_kept_promise_above_every_broken_one(recorder: Recorder) -> None:
    for configuration in recorder.space.configurations()[::7]:
        recorder.measure(configuration, "grid")
    outcomes = recorder.store.read().outcomes()
    kept, broken = outcomes[0], replace(outcomes[0], slo_rate_rps=None, latency_p99_s=math.inf)
    late = replace(broken, latency_p99_s=0.2)
    assert worth(kept, SLO) > worth(late, SLO) > worth(broken, SLO)
    assert math.isfinite(worth(broken, SLO))
    assert max(outcomes, key=lambda o: worth(o, SLO)).slo_rate_rps == max(o.slo_rate_rps or 0 for o in outcomes)


def test_progress_tells_the_best_and_the_time_left(recorder: Recorder) -> None:
    recorder.measure(of(recorder.space, "fp32", ORT, 1), "baseline")
    study = recorder.measure(of(recorder.space, "int8", OV, 64), "profiles")
    best = ranked(study.outcomes(), SLO)[0].configuration
    line = progress(study, SearchBudget(trials=10, finalists=2, confirmations=1), SLO)
    assert line.startswith("trial 2 of about 12")
    assert f"best so far {best}" in line


def test_a_grid_measures_everything_once(recorder: Recorder) -> None:
    wanted = recorder.space.configurations()[:6]
    recorder.measure(wanted[2], "optuna")
    said: list[str] = []
    study = grid(recorder, wanted, said.append)
    assert len(said) == 5
    assert sorted(t.configuration.key for t in study.trials) == sorted(c.key for c in wanted)
    assert all(t.figures and t.figures.slo_rate_rps is not None for t in study.trials if t.origin == "grid")


def test_trials_tell_what_a_request_costs_outside_the_graph(recorder: Recorder) -> None:
    for batch in (1, 16, 64):
        recorder.measure(of(recorder.space, "int8", ORT, batch), "grid")
    cost = front_cost(recorder.space, recorder.store.read()).per_request_s
    assert 0.5 * made._REQUEST_S < cost < 6 * made._REQUEST_S
