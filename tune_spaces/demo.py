"""`sluice demo`: train -> compress -> profile -> deploy -> load -> report, before against after, on this machine.

Each stage is a function of the values of the stages before it, and each local cluster is a context manager: whatever
ends the demo (Ctrl-C, a crash, kill -9) also ends everything that it started, and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import manifests
from cluster.artifacts import ArtifactStore, default_store
from cluster.control.planner import choose
from cluster.control.serve_config import serve_config, to_yaml
from cluster.errors import ConfigError
from cluster.local import LocalCluster
from cluster.plans import Plan
from cluster.variants import Variant
from tune_spaces import baseline
from tune_spaces.measure import PROTOCOLS, Comparison, Endpoint, Protocol, compare
from tune_spaces.profiler import profile
from tune_spaces.report.summary import DemoReport, print_tables, write_report
from tune_spaces.traffic import check_answers, classifier_target, stock_target
from tune_spaces.training import default_runs_dir, fit_on_local_cluster

MODEL_NAME = "classifier"


@dataclass(frozen=True)
class Cores:
    """Who gets which core: the servers and all of Ray on all but the last, the load generator on the last."""

    server: list[int]
    client: list[int]

    @classmethod
    def split(cls) -> Cores:
        available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(available) < 2:
            return cls(server=available, client=available)
        return cls(server=available[:-1], client=available[-1:])


class Stages:
    """Prints what is going on with the time it took, and remembers the times for the report."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._status: Any = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"start {name}", highlight=False)
        with self.console.status(f"[bold]{name}[/bold]") as self._status:
            try:
                yield
            finally:
                self.seconds[name] = time.monotonic() - started
        self.console.print(f"[green]done[/green]  {name}  [dim]{self.seconds[name]:.1f} s[/dim]")

    def say(self, line: str) -> None:
        """One line of live detail: shown in the status on a terminal, printed where there is none."""
        if self.console.is_terminal and self._status is not None:
            self._status.update(f"[dim]{line}[/dim]")
        else:
            self.console.print(f"      {line}", highlight=False)

    def notice(self, line: str) -> None:
        """Something that the user must see, such as another data set than the one asked for."""
        self.console.print(f"[yellow]notice[/yellow] {line}", highlight=False)


def train_and_compress(
    recipe_name: str, run_name: str, runs_dir: Path, store: ArtifactStore, stages: Stages
) -> list[Variant]:
    """Train the recipe data parallel on a local cluster, then make and measure its variants."""
    from train_jobs import datasets, recipes
    from train_jobs.compression.compress import build_variants, of_run

    config = recipes.recipe(recipe_name)
    dataset = datasets.load(config.dataset, notify=stages.notice)
    if dataset.name != config.dataset:
        config = recipes.on_dataset(config, dataset.name)
    with stages.stage(f"train {config.recipe} on {dataset.name} ({config.num_workers} workers)"):
        result = fit_on_local_cluster(
            config, run_name=run_name, storage_path=runs_dir, say=stages.say, notice=stages.notice
        )
    signal.signal(signal.SIGTERM, _terminated)  # ray.init took it
    with stages.stage("compress: fp32 and int8, each measured on the full test set"):
        return build_variants(store, of_run(result.model, config, dataset), dataset, notify=stages.say)


def before_and_after(
    plan: Plan, variants: list[Variant], store: ArtifactStore, run_name: str, protocol: Protocol, stages: Stages
) -> Comparison:
    """Deploy the baseline and the plan side by side, check that both answer rightly, then measure them in turn."""
    from train_jobs import datasets

    cores = Cores.split()
    parent = next(v for v in variants if v.format == "torch_export")
    chosen = store.get(plan.variant_id)
    assert parent.accuracy is not None, "build_variants measures every variant"
    pictures = datasets.load(parent.accuracy.dataset, notify=stages.say).x_test[:256]
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
        our_load = classifier_target("127.0.0.1", ours.http_port, MODEL_NAME, pictures)
        with stages.stage("check: both answer as their variant does in this process"):
            check_answers(store, parent, stock_load, pictures)
            check_answers(store, chosen, our_load, pictures)
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
    as_json: bool = False,
    dry_run: bool = False,
) -> None:
    """The whole demo; see the module's first line. `run` names a demo to resume: what it trained is not trained again.

    Raises ConfigError for an unknown protocol or recipe.
    """
    if protocol_name not in PROTOCOLS:
        raise ConfigError(f"protocol={protocol_name!r} is unknown; pass --protocol with one of {sorted(PROTOCOLS)}")
    protocol = PROTOCOLS[protocol_name]
    if bounds_ms:
        if not all(0 < bound <= 500 for bound in bounds_ms):  # a request is given up after 2 s, four times that
            raise ConfigError(f"bound_ms={list(bounds_ms)} must lie between 0 and 500; pass --bound-ms 50")
        protocol = replace(protocol, bounds_s=tuple(bound / 1e3 for bound in bounds_ms))
    from train_jobs import recipes

    recipes.recipe(recipe_name)
    run_name = run or f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    folder = (output or Path("runs")) / run_name
    if dry_run:
        print(f"would train {recipe_name}, start and stop three local clusters, and write {folder}/")
        return
    console = Console(stderr=as_json, soft_wrap=True)
    stages = Stages(console)
    stages.say(f"{run_name}, into {folder}; interrupted, it goes on with --run {run_name} and the same options")
    started = time.monotonic()
    # Ctrl-C and `kill` end in the same clean-up: the context managers below.
    signal.signal(signal.SIGTERM, _terminated)
    store = default_store()
    folder.mkdir(parents=True, exist_ok=True)
    variants = train_and_compress(recipe_name, run_name, default_runs_dir(), store, stages)
    with stages.stage("profile: every variant in its runtime, a process each"):
        profiles = profile(store, variants, on_progress=stages.say)
    plan = choose(variants, profiles, model_name=MODEL_NAME, store=store.root)
    config_path = folder / "serve-config.yaml"
    config_path.write_text(to_yaml(serve_config(plan, http_host="0.0.0.0", http_port=8000)))
    (folder / "plan.json").write_text(plan.model_dump_json(indent=2))
    (folder / "ray-service.yaml").write_text(manifests.to_yaml(manifests.render_ray_service(plan)))
    comparison = before_and_after(plan, variants, store, run_name, protocol, stages)
    report = DemoReport(
        run_name=run_name,
        plan=plan,
        variants=variants,
        profiles=profiles,
        comparison=comparison,
        stage_seconds=stages.seconds,
        total_seconds=time.monotonic() - started,
        command=f"sluice demo --recipe {recipe_name} --protocol {protocol_name}"
        + "".join(f" --bound-ms {bound:g}" for bound in bounds_ms or ()),
        serve_config=str(config_path),
    )
    written = write_report(report, folder)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_tables(report, console)
        console.print(
            f"report        {written}\nKubeRay       {folder / 'ray-service.yaml'}\nServe config  {config_path}\n"
            f"              serve deploy {config_path} -a http://HEAD:8265   # a running cluster: see the README"
        )


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
