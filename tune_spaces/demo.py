"""`sluice demo`: train -> compress -> tune -> plan -> deploy -> load -> report, before against after, on this machine.

Each stage is a function of the values of the stages before it, and each local cluster is a context manager: whatever
ends the demo (Ctrl-C, a crash, kill -9) also ends everything that it started, and nothing else.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cluster.artifacts import ArtifactStore, default_store
from cluster.control.serve_config import serve_config
from cluster.errors import ConfigError
from cluster.local import LocalCluster
from cluster.plans import Plan
from cluster.runtimes import RuntimeConfig
from cluster.slo import load_slo
from cluster.variants import Variant
from tune_spaces import baseline
from tune_spaces.live import TRIAL_PROTOCOLS
from tune_spaces.measure import PROTOCOLS, Comparison, Endpoint, Protocol, compare
from tune_spaces.report import summary
from tune_spaces.report.report import write
from tune_spaces.search import SearchBudget
from tune_spaces.stages import Cores, Stages
from tune_spaces.traffic import check_answers, stock_target, target_of
from tune_spaces.training import default_runs_dir, fit_on_local_cluster, terminated
from tune_spaces.tune import made_once, report_of, tune, write_plan

if TYPE_CHECKING:
    from train_jobs.datasets import LabelledDataset


def train_and_compress(
    recipe_name: str, run_name: str, runs_dir: Path, folder: Path, store: ArtifactStore, stages: Stages
) -> tuple[list[Variant], LabelledDataset]:
    """Train the recipe data parallel on a local cluster, then make and measure its variants."""
    from train_jobs import datasets, recipes
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.trained import of_finished

    config = recipes.recipe(recipe_name)
    dataset = datasets.load(config.dataset, notify=stages.notice)
    if dataset.name != config.dataset:
        config = recipes.on_dataset(config, dataset.name)
    with stages.stage(f"train {config.recipe} on {dataset.name} ({config.workers[1]} workers)"):
        result = fit_on_local_cluster(
            config, run_name=run_name, storage_path=runs_dir, say=stages.say, notice=stages.notice
        )
    with stages.stage("compress: int8, bf16, pruned; each measured on the full test set in every runtime"):
        variants = made_once(
            folder, store, {"run": run_name, "recipe": config.recipe, "dataset": dataset.name},
            lambda: build_variants(store, of_finished(result, dataset), dataset, notify=stages.say), stages,
        )  # fmt: skip
    return variants, dataset


def before_and_after(
    plan: Plan, variants: Sequence[Variant], dataset: LabelledDataset, store: ArtifactStore, run_name: str,
    protocol: Protocol, stages: Stages,
) -> Comparison:  # fmt: skip
    """Deploy the baseline and the plan side by side, check that both answer rightly, then measure them in turn."""
    cores = Cores.split()
    parent = next(v for v in variants if v.format == "torch_export")
    chosen = store.get(plan.variant_id)
    pictures = dataset.x_test[:256]
    with ExitStack() as running:
        with stages.stage("deploy: the stock baseline (before)"):
            stock = running.enter_context(
                LocalCluster(f"{run_name}-before", ha_proxy=False, cpus=cores.server, num_cpus=4)
            )
            stock.deploy(
                baseline.serve_config(store=store.root, variant_id=parent.id, port=stock.http_port, num_cpus=1),
                timeout_s=120.0,
            )
        with stages.stage(f"deploy: the plan (after), {plan.variant_name}"):
            ours = running.enter_context(
                LocalCluster(f"{run_name}-after", ha_proxy=True, cpus=cores.server, num_cpus=4)
            )
            ours.deploy(serve_config(plan, http_host="127.0.0.1", http_port=ours.http_port), timeout_s=120.0)
        stock_load = stock_target("127.0.0.1", stock.http_port, pictures)
        our_load = target_of("127.0.0.1", ours.http_port, plan.model_name, chosen, pictures)
        with stages.stage("check: both answer as their variant does in this process"):
            check_answers(store, parent, stock_load, pictures, config=RuntimeConfig(name="torch"))
            check_answers(store, chosen, our_load, pictures, config=plan.runtime)
        with stages.stage(f"load: {protocol.name} protocol, before and after in turn"):
            return compare(
                Endpoint("before", stock_load, stock.cpu_seconds),
                Endpoint("after", our_load, ours.cpu_seconds),
                protocol,
                client_cpus=cores.client or None,
                server_cpus=cores.server or None,
                say=stages.say,
            )


def main(
    *,
    output: Path | None = None,
    run: str | None = None,
    recipe_name: str = "cnn_fashion_mnist_quick",
    protocol_name: str = "quick",
    bounds_ms: Sequence[float] | None = None,
    trials: int = 8,
    slo_path: Path | None = None,
    as_json: bool = False,
    dry_run: bool = False,
) -> None:
    """The whole demo; see the module's first line. `run` names a demo to resume: what it trained is not trained again,
    what it measured in the search is not measured again.

    Raises ConfigError for an unknown protocol or recipe, or an SLO that cannot be.
    """
    if protocol_name not in PROTOCOLS:
        raise ConfigError(f"protocol={protocol_name!r} is unknown; pass --protocol with one of {sorted(PROTOCOLS)}")
    protocol = PROTOCOLS[protocol_name]
    slo = load_slo(slo_path)
    if bounds_ms:
        if not all(0 < bound <= 500 for bound in bounds_ms):  # a request is given up after 2 s, four times that
            raise ConfigError(f"bound_ms={list(bounds_ms)} must lie between 0 and 500; pass --bound-ms 50")
        protocol = replace(protocol, bounds_s=tuple(bound / 1e3 for bound in bounds_ms))
        slo = slo.model_copy(update={"latency_p99_ms": bounds_ms[0]})
    elif slo_path is not None:
        protocol = replace(protocol, bounds_s=(slo.latency_p99_s,))
    from train_jobs import recipes

    recipes.recipe(recipe_name)
    run_name = run or f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    folder = (output or Path("runs")) / run_name
    if dry_run:
        print(f"would train {recipe_name}, start and stop four local clusters, and write {folder}/")
        return
    console = Console(stderr=as_json, soft_wrap=True)
    stages = Stages(console)
    stages.say(f"{run_name}, into {folder}; interrupted, it goes on with --run {run_name} and the same options")
    began = time.monotonic()
    # Ctrl-C and `kill` end in the same clean-up: the context managers below.
    signal.signal(signal.SIGTERM, terminated)
    store = default_store()
    folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(
        ["sluice demo", f"--recipe {recipe_name}", f"--protocol {protocol_name}", f"--trials {trials}"]
        + [f"--bound-ms {bound:g}" for bound in bounds_ms or ()]
        + ([f"--slo {slo_path}"] if slo_path else [])
    )
    variants, dataset = train_and_compress(recipe_name, run_name, default_runs_dir(), folder, store, stages)
    tuned = tune(
        variants, dataset, slo, store, folder=folder, budget=budget_of(trials), protocol=TRIAL_PROTOCOLS[protocol_name],
        stages=stages, command=command,
    )  # fmt: skip
    files = write_plan(tuned.plan, folder)
    comparison = before_and_after(tuned.plan, variants, dataset, store, run_name, protocol, stages)
    deploy = f"sluice deploy {folder}/serve-config.yaml --address http://HEAD:8265"
    report = replace(
        report_of(tuned, stages=stages, began=began, commands=(command, deploy), files=files), comparison=comparison
    )
    page = write(report, folder)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        summary.print_tables(report, console)
        console.print(
            f"report        {page}  (and report.md, report.json)\nKubeRay       {folder / 'ray-service.yaml'}\n"
            f"Serve config  {folder / 'serve-config.yaml'}\n"
            f"              {deploy}   # a running cluster: see the README"
        )


def budget_of(trials: int) -> SearchBudget:
    """A search of that many configurations: half of them by profile, the best two measured again."""
    return SearchBudget(trials=trials, promising=max(1, (trials + 1) // 2), finalists=2, confirmations=1)
