"""Is the search's choice right? Brute force over a grid beside it, on the same warm deployment of one run.

    python -m benchmarks.search_quality cnn_fashion_mnist_quick --output docs/results/2026-01-31-search

1. The search, as `sluice tune` runs it, in a study of its own.
2. Every variant x runtime x threads x max_batch_size of the same space, measured like any trial (queue bound: 1,024).
3. The grid's best few and the choice again, in turn, at longer steps: of so many noisy figures the best is partly luck.

Interrupted or killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.artifacts import default_store
from cluster.control.planner import ranked, score
from cluster.hardware import fingerprint
from cluster.load import Target
from cluster.plans import Configuration
from cluster.slo import Slo, load_slo
from cluster.studies import Outcome, Study, StudyStore
from tune_spaces.live import TRIAL_PROTOCOLS, TrialProtocol
from tune_spaces.search import Recorder, Search, SearchBudget, grid
from tune_spaces.spaces import SearchSpace
from tune_spaces.stages import Cores, Stages
from tune_spaces.traffic import target_of
from tune_spaces.tune import baseline_of, dataset_of, header_of, live_deployment, samples_of, space_of, variants_named

_QUEUE = 1024
_GRID = TrialProtocol("grid", step_s=1.5, warmup_s=0.3, steps=3, closed_loop_s=0.5)
"""Shorter than the search's trials: there are so many."""
_FINAL = TrialProtocol("final", step_s=6.0, warmup_s=0.5, steps=4, closed_loop_s=1.0)


def grid_of(space: SearchSpace, without: Sequence[str]) -> list[Configuration]:
    """All of the space but the queue bounds, which only matter in overload, and the runtimes `without`."""
    return [
        c for c in space.configurations()
        if c.max_queued_requests == max(_QUEUE, c.max_batch_size) and c.runtime.name not in without
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a model with variants in the store")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--slo", type=Path)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--finalists", type=int, default=3, help="of the grid, beside the choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--without-runtime", action="append", default=[], help="a runtime that brute force leaves out, the search not"
    )
    parser.add_argument("--protocol", default="quick", choices=sorted(TRIAL_PROTOCOLS))
    arguments = parser.parse_args(argv)
    measure(arguments, load_slo(arguments.slo), Stages(Console(soft_wrap=True)))


def measure(arguments: argparse.Namespace, slo: Slo, stages: Stages) -> None:
    """Search, grid, final rounds; then report.json and report.md."""
    store, cores = default_store(), Cores.split(slo.budget.cores)
    variants = variants_named(store, arguments.name)
    samples = samples_of(dataset_of(variants, stages), variants[0])
    space = space_of(variants, slo, store, cores=cores, stages=stages, samples=samples)
    baseline = baseline_of(space, variants)
    variant = next(v for v in variants if v.id == baseline.variant_id)
    protocol = TRIAL_PROTOCOLS[arguments.protocol]

    def target(host: str, port: int) -> Target:
        return target_of(host, port, slo.model_name, variant, samples)

    def records(name: str, used: TrialProtocol) -> StudyStore:
        store = StudyStore((arguments.output / name).resolve())  # trials run in another folder
        command = " ".join(
            [f"python -m benchmarks.search_quality {arguments.name} --output {arguments.output}",
             f"--trials {arguments.trials} --finalists {arguments.finalists} --rounds {arguments.rounds}",
             *(f"--without-runtime {name}" for name in arguments.without_runtime),
             *([f"--slo {arguments.slo}"] if arguments.slo else [])]
        )  # fmt: skip
        store.open(header_of(variants, slo, space, used, cores, name=name, command=command))
        return store

    with live_deployment(space, baseline, target, slo, store, cores, protocol, stages, "search-quality") as live:

        def recorder(name: str, used: TrialProtocol) -> Recorder:
            return Recorder(live.deployment, used, records(name, used), space, live.empty_replica_bytes)

        with stages.stage("search"):
            budget = SearchBudget(
                trials=arguments.trials, promising=(arguments.trials + 1) // 2, finalists=2, confirmations=1
            )
            search = Search(
                recorder("search", protocol), budget, baseline, ray_address=live.ray_address, say=stages.tell
            )
            searched = search.run()
        choice = ranked(searched.outcomes(), slo)[0].configuration
        with stages.stage("grid"):
            everything = grid_of(space, arguments.without_runtime)
            brute = grid(recorder("grid", _GRID), everything, stages.tell)
        best = [o.configuration for o in ranked(brute.outcomes(), slo)][: arguments.finalists]
        finalists = list({c.key: c for c in (choice, *best, baseline)}.values())
        with stages.stage("final rounds"):
            last = recorder("final", _FINAL)
            final = last.store.read()
            for number in range(1, arguments.rounds + 1):
                for configuration in finalists:
                    done = sum(t.configuration.key == configuration.key for t in final.trials)
                    if done < number:
                        final = last.measure(configuration, "confirm", everything=True)
                        stages.tell(f"round {number}: {configuration}")
    write(arguments.output, slo, choice, searched, brute, final)


def _value(outcome: Outcome, slo: Slo) -> float:
    """The objective's figure."""
    if slo.objective == "min_latency":
        return outcome.latency_p99_s
    if slo.objective == "min_cost":
        return outcome.core_s_per_million or float("nan")
    return outcome.slo_rate_rps or 0.0


def _each(study: Study, key: str, slo: Slo) -> list[float]:
    """The objective's figure of every trial of one configuration."""
    trials = [Study(study.header, (t,)) for t in study.trials if t.configuration.key == key and t.figures is not None]
    return [_value(trial.outcomes()[0], slo) for trial in trials]


def write(folder: Path, slo: Slo, choice: Configuration, searched: Study, brute: Study, final: Study) -> None:
    """How far the choice is from the best of the grid, in the final rounds."""
    by_key = {outcome.configuration.key: outcome for outcome in final.outcomes()}
    chosen, order = by_key[choice.key], ranked(final.outcomes(), slo)
    best = order[0]
    ratio = _value(chosen, slo) / _value(best, slo)
    if slo.objective != "max_rate":  # less is better
        ratio = 1 / ratio
    searching_s = sum(trial.took_s for trial in searched.trials)
    grid_s = sum(trial.took_s for trial in brute.trials)
    summary = {
        "objective": slo.objective, "choice": str(choice), "best": str(best.configuration),
        "choice_over_best": ratio, "search_trials": len(searched.trials), "search_s": searching_s,
        "grid_configurations": len(brute.outcomes()), "grid_s": grid_s, "hardware": fingerprint(),
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(summary, indent=1))
    each = {o.configuration.key: _each(final, o.configuration.key, slo) for o in final.outcomes()}
    spread = statistics.median(max(values) / min(values) for values in each.values())
    rows = [
        f"| {o.configuration} | {_value(o, slo):,.4g} | {', '.join(f'{v:,.4g}' for v in each[o.configuration.key])} "
        f"| {o.max_rate_rps:,.0f} | {o.latency_p50_s * 1e3:.2f} | {o.latency_p99_s * 1e3:.2f} | {o.accuracy:.4f} |"
        for o in sorted(final.outcomes(), key=lambda o: -score(o, slo))
    ]
    grid_rows = [
        f"| {o.configuration} | {_value(o, slo):,.4g} | {o.max_rate_rps:,.0f} | {o.latency_p99_s * 1e3:.2f} |"
        for o in sorted(brute.outcomes(), key=lambda o: -score(o, slo))
    ]
    place = 1 + sum(score(o, slo) > score(chosen, slo) for o in brute.outcomes())
    failed = [t for study in (searched, brute, final) for t in study.trials if t.error]
    (folder / "report.md").write_text(f"""# Is the search's choice right?

`{searched.header.command}`

The search measured {len(searched.trials)} trials in {searching_s / 60:.1f} min; brute force {len(brute.outcomes())}
configurations in {grid_s / 60:.1f} min, on the same warm deployment. In the final rounds (in turn,
{_FINAL.step_s:g} s a step) the choice reaches **{ratio:.3f}** of the best configuration that is known:

- choice: {choice}
- best: {best.configuration}

Of one configuration the largest figure of the final rounds was {spread:.2f} times the smallest (median over the
finalists). Trials that failed: {len(failed)}. Objective: {slo.objective}, p99 within {slo.latency_p99_ms:g} ms.

## Final rounds

| configuration | {slo.objective} | by round | max rate | p50 ms | p99 ms | accuracy |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

## The grid, one trial each

By its final figure the choice would stand at place {place} of {len(brute.outcomes())} here (single short trials: the
first places of so many are partly luck).

| configuration | {slo.objective} | max rate | p99 ms |
|---|---|---|---|
{chr(10).join(grid_rows)}

Servers on cores {searched.header.cpus["server"]}, client on {searched.header.cpus["client"]}. Machine:
{json.dumps(fingerprint())}
""")


if __name__ == "__main__":
    main()
