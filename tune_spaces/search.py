"""SearchSpace + LiveDeployment + Slo -> Study: which configuration serves best, found by measuring few of them.

    baseline    the trained model in its first runtime, one request a batch: what one has without a search
    profiles    the most promising by prediction, from the graphs' batch curves
    optuna      what the sampler (TPE: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011,
                section 4) proposes in the light of all of them, run by Ray Tune, one trial at a time
    confirm     the best few again, in turn and with other seeds: the best of many noisy figures is partly luck

Every trial is kept in the StudyStore as soon as it is measured. A search that was interrupted, or killed, starts again
from what is there: nothing is measured twice, and Ray Tune's own checkpoints (pickles) are not needed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.control.planner import holds, ranked, score
from cluster.control.prediction import FrontCost, calibrated
from cluster.errors import SluiceError
from cluster.plans import Configuration
from cluster.slo import Slo
from cluster.studies import Origin, Outcome, Study, StudyStore, Trial
from tune_spaces.connection import connected
from tune_spaces.live import LiveDeployment, TrialProtocol
from tune_spaces.spaces import SearchSpace, most_promising, ranking

if TYPE_CHECKING:
    import optuna
    from ray import tune
    from ray.tune import Stopper

Say = Callable[[str], None]
_METRIC = "worth"
_UNKEPT = -1e15
"""Worth of a configuration that keeps no promise; TPE only looks at the order."""
_PROPOSALS = 6
"""Optuna may propose what was measured already: so many proposals are asked for each new trial at most."""


@dataclass(frozen=True)
class SearchBudget:
    """How much is measured live. Trials that the study holds already count."""

    trials: int = 16
    """Configurations, the baseline and the promising ones included."""
    promising: int = 6
    """Of these, how many the ranking by profiles chooses; the rest is Optuna's."""
    finalists: int = 3
    """Configurations that are measured again at the end."""
    confirmations: int = 2
    """How often each of them."""
    time_s: float | None = None
    """No new trial begins after this; None: no limit."""


def worth(outcome: Outcome, slo: Slo) -> float:
    """What the sampler maximises: the objective where the SLO is kept; below all of that, the nearer to keeping it the
    better."""
    if holds(outcome, slo):
        return score(outcome, slo)
    return _UNKEPT - min(outcome.latency_p99_s, 1e6) * 1e6 + min(outcome.max_rate_rps, 1e6)


@dataclass(frozen=True)
class Recorder:
    """Measures one configuration on the deployment and keeps the trial; can be sent to another process."""

    deployment: LiveDeployment
    protocol: TrialProtocol
    store: StudyStore
    space: SearchSpace
    empty_replica_bytes: int
    """Resident memory of a replica without runtime and variant. A replica that took on several configurations keeps
    what their libraries allocated, so its own memory says nothing of the last one: the profile's is added to this."""

    def memory_bytes(self, configuration: Configuration) -> int:
        """Of all replicas, had they only ever served this."""
        loaded = max(point.memory_bytes for point in self.space.curve(configuration).points)
        return configuration.num_replicas * (self.empty_replica_bytes + loaded)

    def measure(self, configuration: Configuration, origin: Origin, *, everything: bool = False) -> Study:
        """The study with the new trial in it. A configuration that cannot be served is a trial with an error.

        `everything`: also search the SLO rate of what has no chance to be the best.
        """
        study = self.store.read()
        seed = 1 + sum(trial.configuration.key == configuration.key for trial in study.trials)
        first = next((t.figures for t in study.trials if t.figures is not None), None)
        rates = [o.slo_rate_rps for o in study.outcomes() if o.slo_rate_rps is not None]
        began, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        figures, error = None, None
        try:
            figures = self.deployment.measure(
                configuration, self.protocol, seed=seed,
                reference_rate_rps=first.reference_rate_rps if first else None,
                best_rps=0.0 if everything else max(rates, default=0.0), memory_bytes=self.memory_bytes(configuration),
            )  # fmt: skip
        except SluiceError as problem:
            error = str(problem)
        self.store.add(
            Trial(
                number=study.next_number, configuration=configuration, origin=origin, seed=seed, figures=figures,
                error=error, started_at=started_at, took_s=time.monotonic() - began,
            )
        )  # fmt: skip
        return self.store.read()


class Search:
    """One search over one space. `run` goes on where the study's last process stopped."""

    def __init__(
        self, recorder: Recorder, budget: SearchBudget, baseline: Configuration, *, ray_address: str, say: Say
    ) -> None:
        self._space = recorder.space
        self._recorder = recorder
        self._budget = budget
        self._baseline = baseline
        self._ray_address = ray_address
        self._say = say
        self._slo = recorder.deployment.slo
        self._began = time.monotonic()

    def run(self) -> Study:
        """Until the budget is spent. Raises what the cluster raises; what was measured by then is kept."""
        study = self._recorder.store.read()
        if not any(trial.origin == "baseline" for trial in study.trials):
            study = self._measure(self._baseline, "baseline")
        promising = self.promising(study)
        self._say(
            f"{len(self._space.configurations()):,} configurations; {self._budget.trials} are measured live, "
            f"{len(promising)} of them the most promising by their profiles"
        )
        if not self._enough(study):
            study = self._tune(study, promising)
        return self._confirm(study)

    def promising(self, study: Study) -> list[Configuration]:
        """The most promising by prediction that are not measured yet; what an interrupted search did of them counts."""
        measured = measured_keys(study)
        done = sum(trial.origin == "profiles" for trial in study.trials)
        order = ranking(self._space, self._slo, front_cost(self._space, study))
        left = [pair for pair in order if pair[0].key not in measured]
        return most_promising(left, max(0, min(self._budget.promising - done, self._left(study))))

    def _left(self, study: Study) -> int:
        return self._budget.trials - len(measured_keys(study))

    def _enough(self, study: Study) -> bool:
        everything = {c.key for c in self._space.configurations()} <= measured_keys(study)
        return everything or self._left(study) <= 0 or self._out_of_time()

    def _out_of_time(self) -> bool:
        return self._budget.time_s is not None and time.monotonic() - self._began > self._budget.time_s

    def _measure(self, configuration: Configuration, origin: Origin) -> Study:
        study = self._recorder.measure(configuration, origin)
        self._say(progress(study, self._budget, self._slo))
        return study

    def _tune(self, study: Study, promising: Sequence[Configuration]) -> Study:
        """Ray Tune with Optuna until enough configurations are measured, or nothing new is proposed."""
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is ours: it ends the clusters too
        searcher = OptunaSearch(
            _Suggest(self._space), metric=_METRIC, mode="max", storage=self._history(study, promising),
            study_name=_METRIC,
        )  # fmt: skip
        recorder, keys = self._recorder, frozenset(c.key for c in promising)

        def trial(config: dict[str, Any]) -> None:
            tune.report({_METRIC: _one_trial(recorder, keys, config)})

        seen, done = len(study.trials), False

        def on_trial() -> None:
            nonlocal seen, done
            now = recorder.store.read()
            done = self._enough(now)
            if len(now.trials) > seen:  # else it was a configuration that is known
                seen = len(now.trials)
                self._say(progress(now, self._budget, self._slo))

        # Asked ten times a second while the load generator needs the core: it must cost nothing.
        enough, told_of = _watchers(lambda: done or self._out_of_time(), on_trial)
        with tempfile.TemporaryDirectory(prefix="sluice-tune-") as folder, connected(self._ray_address):
            os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer one prints its tables whatever `verbose` says
            tuner = tune.Tuner(
                tune.with_resources(trial, {"cpu": 0.1}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, num_samples=self._left(study) * _PROPOSALS,
                    max_concurrent_trials=1, reuse_actors=True,  # load trials side by side would contaminate each other
                ),
                run_config=tune.RunConfig(
                    name="study", storage_path=folder, verbose=0, stop=enough, callbacks=[told_of],
                ),
            )  # fmt: skip
            results = tuner.fit()
        # A trial that cannot be served is kept with its error; what ends here is not of the trial's making.
        for error in results.errors:
            raise error
        on_trial()  # the last one ends the experiment before it is told of
        return self._recorder.store.read()

    def _history(self, study: Study, promising: Sequence[Configuration]) -> optuna.storages.BaseStorage:
        """Optuna's memory of what is measured, and what is to be measured first."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = optuna.storages.InMemoryStorage()
        known = optuna.create_study(storage=storage, study_name=_METRIC, direction="maximize")
        offered = {configuration.key for configuration in self._space.configurations()}
        for outcome in study.outcomes():
            if outcome.configuration.key in offered:  # the baseline need not be
                known.add_trial(_evaluated(self._space, outcome.configuration, worth(outcome, self._slo)))
        for configuration in promising:
            known.enqueue_trial(self._space.parameters(configuration))
        return storage

    def _confirm(self, study: Study) -> Study:
        """The best few again, in turn."""
        best = [outcome.configuration for outcome in ranked(study.outcomes(), self._slo)][: self._budget.finalists]
        for again in range(1, self._budget.confirmations + 1):
            for configuration in best:
                done = sum(t.origin == "confirm" and t.configuration.key == configuration.key for t in study.trials)
                if done < again and not self._out_of_time():
                    study = self._measure(configuration, "confirm")
        return study


def front_cost(space: SearchSpace, study: Study) -> FrontCost:
    """What a request costs outside the graph, as the trials of `study` say."""
    known = {configuration.key for configuration in space.configurations()}
    found = [
        (outcome.configuration, space.curve(outcome.configuration), outcome.max_rate_rps)
        for outcome in study.outcomes()
        if outcome.configuration.key in known
    ]
    return calibrated(found, cores=space.cores)


def grid(
    recorder: Recorder, configurations: Sequence[Configuration], say: Say, *, origin: Origin = "grid"
) -> Study:
    """Measure every one of `configurations`, which the study does not hold yet: brute force, to judge a search by."""
    study = recorder.store.read()
    missing = [c for c in configurations if c.key not in measured_keys(study)]
    for number, configuration in enumerate(missing, start=1):
        study = recorder.measure(configuration, origin, everything=True)
        say(f"grid {number}/{len(missing)}: {told(study.trials[-1])}")
    return study


def progress(study: Study, budget: SearchBudget, slo: Slo) -> str:
    """trial 7 of about 22: <what was measured>; best so far ...; about 3 min left"""
    last = study.trials[-1]
    best = next(iter(ranked(study.outcomes(), slo)), None)
    total = budget.trials + budget.finalists * budget.confirmations
    left = max(0, total - len(study.trials))
    mean_s = sum(trial.took_s for trial in study.trials) / len(study.trials)
    so_far = f"best so far {best.configuration}, {_figure(best, slo)}" if best else "nothing keeps the SLO yet"
    minutes = f"about {left * mean_s / 60:.0f} min left"
    return f"trial {len(study.trials)} of about {total}, {told(last)}; {so_far}; {minutes}"


def told(trial: Trial) -> str:
    """One trial in a line."""
    if trial.figures is None:
        return f"{trial.configuration} ({trial.origin}): failed: {trial.error}"
    f = trial.figures
    rate = "" if f.slo_rate_rps is None else f"SLO rate {f.slo_rate_rps:,.0f}/s, "
    p99 = "failed" if f.latency_p99_s is None else f"{f.latency_p99_s * 1e3:.1f} ms"
    return (
        f"{trial.configuration} ({trial.origin}): {rate}max {f.max_rate_rps:,.0f}/s, p99 {p99} at "
        f"{f.reference_rate_rps:,.0f}/s"
    )


def _figure(outcome: Outcome, slo: Slo) -> str:
    if slo.objective == "min_latency":
        return f"p99 {outcome.latency_p99_s * 1e3:.1f} ms"
    if slo.objective == "min_cost" and outcome.core_s_per_million is not None:
        return f"{outcome.core_s_per_million:,.0f} core-seconds per million"
    return f"SLO rate {outcome.slo_rate_rps or 0:,.0f}/s"


def measured_keys(study: Study) -> set[str]:
    """Of all configurations that were tried, also in vain."""
    return {trial.configuration.key for trial in study.trials}


def _evaluated(space: SearchSpace, configuration: Configuration, value: float) -> optuna.trial.FrozenTrial:
    import optuna

    parameters = space.parameters(configuration)
    fixed = optuna.trial.FixedTrial(parameters)
    space.suggest(fixed)
    return optuna.trial.create_trial(params=parameters, distributions=dict(fixed.distributions), value=value)


@dataclass(frozen=True)
class _Suggest:
    """Define by run, as OptunaSearch calls it: what it suggests is captured, so nothing is returned."""

    space: SearchSpace

    def __call__(self, trial: Any) -> None:
        self.space.suggest(trial)


def _one_trial(recorder: Recorder, promising: frozenset[str], config: dict[str, Any]) -> float:
    """In Ray Tune's actor: one proposal of Optuna's, measured unless it was already; returns its worth."""
    import optuna

    configuration = recorder.space.suggest(optuna.trial.FixedTrial(config))
    study = recorder.store.read()
    if configuration.key not in measured_keys(study):
        study = recorder.measure(configuration, "profiles" if configuration.key in promising else "optuna")
    outcome = next((o for o in study.outcomes() if o.configuration.key == configuration.key), None)
    return worth(outcome, recorder.deployment.slo) if outcome else 2 * _UNKEPT


def _watchers(enough: Callable[[], bool], on_trial: Callable[[], None]) -> tuple[Stopper, tune.Callback]:
    """(what ends the experiment, what hears of every trial). Tune pickles both with its own state, which nobody reads:
    they go without theirs."""
    from ray import tune
    from ray.tune import Stopper

    class Enough(Stopper):  # type: ignore[misc]
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return enough()

        def __reduce__(self) -> tuple[Any, ...]:
            return (Stopper, ())

    class Told(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            on_trial()

        def __reduce__(self) -> tuple[Any, ...]:
            return (tune.Callback, ())

    return Enough(), Told()
