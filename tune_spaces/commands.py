"""The bodies of `sluice`'s commands, one function each; cluster/cli.py names them by string."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from rich.console import Console

from cluster import local
from cluster.artifacts import ArtifactStore, default_store
from cluster.control.serve_config import serve_config, to_yaml
from cluster.errors import ConfigError
from cluster.plans import Plan
from tune_spaces.report import summary
from tune_spaces.training import default_runs_dir, fit_on_local_cluster

_console = Console(soft_wrap=True)  # a message is one line, whoever reads it


def _store(path: Path | None) -> ArtifactStore:
    return ArtifactStore(path) if path else default_store()


def train(
    *, recipe: str, overrides: list[str], run: str | None, runs_dir: Path | None, as_json: bool, dry_run: bool
) -> None:
    """Train a recipe on a local Ray cluster; the same run name resumes."""
    from train_jobs import datasets, recipes

    config = recipes.recipe(recipe).with_overrides(overrides)
    name, folder = run or recipe, runs_dir or default_runs_dir()
    if dry_run:
        print(f"would train {config.recipe} on {config.dataset} with {config.num_workers} workers into {folder / name}")
        return
    console = Console(stderr=as_json, soft_wrap=True)
    dataset = datasets.load(config.dataset, notify=lambda line: console.print(f"[yellow]notice[/yellow] {line}"))
    if dataset.name != config.dataset:
        config = recipes.on_dataset(config, dataset.name)
        console.print(f"[yellow]notice[/yellow] the recipe is {config.recipe} now, and so its variants will be called")
    with console.status(f"training {name}") as status:
        say = (lambda line: status.update(f"{name}: {line}")) if console.is_terminal else console.print
        result = fit_on_local_cluster(
            config, run_name=name, storage_path=folder, say=say,
            notice=lambda line: console.print(f"[yellow]notice[/yellow] {line}"),
        )  # fmt: skip
    best = max((row.val_accuracy for row in result.history), default=float("nan"))
    if as_json:
        print(json.dumps({"run": name, "runs_dir": str(folder), "epochs": len(result.history), "val_accuracy": best}))
    else:
        console.print(f"trained {name}: validation accuracy {best:.4f}; next: sluice compress {name}")


def compress(*, run: str, runs_dir: Path | None, store: Path | None, as_json: bool) -> None:
    """Variants of a finished run."""
    from train_jobs import datasets, job
    from train_jobs.compression.compress import build_variants, of_run

    model, config = job.load_run(run, runs_dir or default_runs_dir())
    console = Console(stderr=as_json, soft_wrap=True)
    dataset = datasets.load(config.dataset, notify=console.print)
    variants = build_variants(_store(store), of_run(model, config, dataset), dataset, notify=console.print)
    if as_json:
        print(json.dumps([v.model_dump(mode="json") for v in variants], indent=2))
    else:
        console.print(summary.table("Variants", summary.VARIANT_HEADERS, summary.variant_rows(variants)))
        console.print(f"next: sluice profile {' '.join(v.name for v in variants if v.format == 'onnx')}")


def profile(*, refs: list[str], store: Path | None, as_json: bool) -> None:
    """Latency and throughput of variants by batch size."""
    from tune_spaces.profiler import profile as run_profiler

    artifacts = _store(store)
    variants = [artifacts.get(ref) for ref in refs]
    profiles = run_profiler(artifacts, variants, on_progress=lambda line: Console(stderr=True).print(line))
    if as_json:
        print(json.dumps([p.model_dump(mode="json") for p in profiles], indent=2))
    else:
        rows = summary.profile_rows(profiles, variants)
        _console.print(summary.table("Profiles, one thread", summary.PROFILE_HEADERS, rows))


def serve_local(*, ref: str, port: int, host: str, store: Path | None, dry_run: bool) -> None:
    """Serve one variant in the foreground."""
    from tune_spaces.profiler import runtime_config_of

    artifacts = _store(store)
    variant = artifacts.get(ref)
    plan = Plan(
        model_name="classifier",
        variant_id=variant.id,
        variant_name=variant.name,
        runtime=runtime_config_of(variant),
        store=str(artifacts.root),
        made_by="sluice serve",
    )
    config = serve_config(plan, http_host=host, http_port=port)
    if dry_run:
        print(to_yaml(config))
        return
    with local.LocalCluster("serve", http_port=port) as cluster:
        cluster.deploy(config, timeout_s=120.0)
        _console.print(f"serving {variant.name} at http://127.0.0.1:{port}/v2/models/classifier; Ctrl-C stops it")
        while cluster.is_running():
            time.sleep(0.5)
    _console.print("the cluster was stopped")


def deploy(*, path: Path, address: str, dry_run: bool) -> None:
    """PUT a Serve config to a running cluster's dashboard and wait until its applications run."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} is no readable YAML file ({error}); write one with `sluice serve --dry-run`"
        ) from error
    listed = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise ConfigError(f"{path} names no applications; it must be a Serve config, see `sluice serve --dry-run`")
    names = [application.get("name", "default") for application in listed]
    if dry_run:
        print(f"would deploy {', '.join(names)} to {address}:\n{to_yaml(config)}")
        return
    local.deploy_config(address, config, timeout_s=300.0)
    _console.print(f"running: {', '.join(names)}")


def load(
    *, url: str, model: str, rate: float, duration_s: float, arrivals: str, connections: int, bound_s: float, seed: int,
    as_json: bool,
) -> None:
    """Open-loop load of random pictures, shaped as the model's own metadata says."""
    import httpx
    import numpy as np

    from cluster.load import Target, build_request, run_open_loop, summary_rows
    from cluster.load.report import percentile_rows
    from cluster.tensors import NUMPY_OF_DATATYPE
    from serve_apps.oip.codec import encode_request

    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise ConfigError(f"url={url!r} is no http://host:port address ({error})") from error
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"url={url!r} is no http://host:port address")
    if not (rate > 0 and duration_s > 0 and bound_s > 0):
        raise ConfigError(f"rate={rate}, duration_s={duration_s} and bound_s={bound_s} must be above 0")
    times = _arrivals(arrivals, rate, duration_s, seed)
    try:
        answer = httpx.get(f"http://{parts.hostname}:{port}/v2/models/{model}", timeout=10.0)
    except httpx.HTTPError as error:
        raise ConfigError(f"{url} does not answer ({error}); is the deployment running? See `sluice status`") from error
    if answer.status_code != 200:
        raise ConfigError(f"{url} knows no model {model!r} ({answer.status_code}: {answer.text[:200]}); pass --model")
    rng = np.random.default_rng(seed)
    inputs = {
        spec["name"]: rng.integers(0, 255, (1, *spec["shape"][1:])).astype(NUMPY_OF_DATATYPE[spec["datatype"]])
        for spec in answer.json()["inputs"]
    }
    body, headers = encode_request(inputs, binary=True, binary_output=True)
    request = build_request("POST", f"/v2/models/{model}/infer", f"{parts.hostname}:{port}", headers, body)
    target = Target(host=parts.hostname, port=port, requests=[request], expect=[b'"outputs"'])
    result = run_open_loop(target, times, duration_s=duration_s, connections=connections)
    if as_json:
        print(json.dumps(result.to_json(bound_s=bound_s)))
        return
    title = f"{url}, {rate:g} req/s for {duration_s:g} s"
    _console.print(summary.table(title, ("figure", "value"), list(summary_rows(result, bound_s=bound_s))))
    columns = ("latency from the scheduled time", "all requests", "served ones")
    _console.print(summary.table("", columns, list(percentile_rows(result))))


def _arrivals(kind: str, rate: float, duration_s: float, seed: int) -> Any:
    """Arrival offsets in seconds: "poisson", "constant", or the start of a trace file scaled to a mean of `rate`."""
    from cluster.load import constant, poisson, read_trace_csv, replay

    if kind == "poisson":
        return poisson(rate, duration_s, seed=seed)
    if kind == "constant":
        return constant(rate, duration_s)
    path = Path(kind)
    if not path.is_file():
        raise ConfigError(f"arrivals={kind!r} is neither poisson nor constant nor a file; pass one of these")
    trace = read_trace_csv(path)
    window = trace.rates_rps[: max(1, round(duration_s / trace.bin_s))]
    mean = float(window.mean())
    if mean <= 0:
        raise ConfigError(f"{path}: the first {duration_s:g} s hold no request; pass a longer --duration-s")
    return replay(window, trace.bin_s, scale=rate / mean, seed=seed)


def status(*, as_json: bool) -> None:
    """Local clusters that Sluice started and that still run."""
    clusters = local.list_clusters()
    if as_json:
        print(json.dumps([c.as_dict() for c in clusters], indent=2))
    elif not clusters:
        _console.print("nothing runs here that Sluice started")
    else:
        rows = [(c.name, str(c.supervisor_pid), str(c.http_port), c.dashboard_address) for c in clusters]
        headers = ("name", "supervisor pid", "http port", "dashboard")
        _console.print(summary.table("Local clusters", headers, list(rows)))


def stop(*, name: str | None, dry_run: bool) -> None:
    """Stop one local cluster, or all that Sluice started."""
    names = [c.name for c in local.list_clusters()]
    if name is not None and name not in names:
        raise ConfigError(f"no local cluster is called {name!r}; running: {', '.join(names) or 'none'}")
    for each in [name] if name else names:
        if dry_run:
            print(f"would stop {each}")
            continue
        local.stop_cluster(each)
        print(f"stopped {each}")
    if not names:
        print("nothing to stop")
