"""The bodies of `sluice`'s commands, one function each; cluster/cli.py names them by string."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError
from rich.console import Console

from cluster import local
from cluster.artifacts import ArtifactStore, default_store
from cluster.control.serve_config import serve_config, to_yaml
from cluster.errors import ConfigError
from cluster.plans import Plan
from cluster.runtimes import RuntimeConfig, runtimes_for
from cluster.slo import checked_name, load_slo
from cluster.variants import Variant
from tune_spaces.report import summary
from tune_spaces.training import default_runs_dir, terminated

if TYPE_CHECKING:
    from train_jobs.compression.trained import TrainedModel
    from train_jobs.datasets import LabelledDataset
    from tune_spaces.stages import Stages

_console = Console(soft_wrap=True)  # a message is one line, whoever reads it


def _store(path: Path | None) -> ArtifactStore:
    return ArtifactStore(path) if path else default_store()


def compress(
    *, run: str | None, model: str | None, data: str | None, name: str | None, spec: Path | None, variants: list[str],
    without: list[str], runs_dir: Path | None, store: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Variants of a finished run, or of a model of the user's own."""
    from train_jobs import runs
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import check_passes, chosen, default_spec
    from train_jobs.compression.trained import of_finished, sampler_of

    wanted = chosen(spec, variants)
    check_passes(without)
    console = Console(stderr=as_json, soft_wrap=True)
    if run is not None and (model or data):
        raise ConfigError(f"run={run!r} and --model/--data both say what to compress; pass one of them")
    if run is not None:
        trained = runs.load(run, runs_dir or default_runs_dir())
        dataset: Any = trained.config.task.load(trained.config.dataset, notify=console.print)
        source = of_finished(trained, dataset, runs_dir=runs_dir or default_runs_dir())
        sampler = sampler_of(trained.model, trained.config, dataset, runs_dir=runs_dir or default_runs_dir())
    else:
        source, dataset = _own(model, data, name, console)
        sampler = None
    passes = (wanted or default_spec(source.family)).without(without)
    sources = [source] if sampler is None else [source, sampler]
    made = []
    for each in sources:
        made += build_variants(_store(store), each, dataset, passes, notify=console.print)
    if as_json:
        print(json.dumps([v.model_dump(mode="json") for v in made], indent=2))
    else:
        console.print(summary.table("Variants", summary.VARIANT_HEADERS, summary.variant_rows(made)))
        console.print("next: " + ", ".join(f"sluice tune {each.name}" for each in sources))


def passes(*, as_json: bool) -> None:
    """What a spec may name."""
    from train_jobs.compression.spec import KINDS

    if as_json:
        print(json.dumps({k.name: {"does": k.does, **k.config.model_json_schema()} for k in KINDS.values()}, indent=2))
        return
    rows = [
        (kind.name, kind.stage, kind.does, ", ".join(kind.config.model_fields) or "none") for kind in KINDS.values()
    ]
    title, headers = "Passes: those on the module come first", ("pass", "on the", "does", "settings")
    _console.print(summary.table(title, headers, rows))


def _own(
    model: str | None, data: str | None, name: str | None, console: Console
) -> tuple[TrainedModel, LabelledDataset]:
    """The user's own model and data. Raises ConfigError unless both are named."""
    from train_jobs import datasets
    from train_jobs.bring import load_model

    if not model or not data:
        raise ConfigError(
            f"--model={model or ''} and --data={data or ''} belong together: a model of your own needs samples to "
            "calibrate on and to be measured with; pass both (`sluice init` writes an example)"
        )
    dataset = datasets.load(data, notify=lambda line: console.print(f"[yellow]notice[/yellow] {line}"))
    return load_model(model, dataset, name=name), dataset


def profile(*, refs: list[str], fresh: bool, also: list[str], store: Path | None, as_json: bool) -> None:
    """Latency and throughput of variants by batch size, in every runtime that executes them, and as `also` says."""
    from cluster.profiles import curves
    from tune_spaces.profiler import profile as run_profiler
    from tune_spaces.profiler import runtime_configs
    from tune_spaces.stages import Cores, Stages
    from tune_spaces.tune import dataset_of, samples_of

    artifacts, cores = _store(store), Cores.split()
    variants = [artifacts.get(ref) for ref in refs]
    leaving = [v for v in variants if any(done.name == "early_exit" for done in v.passes)]
    samples = None
    if leaving:  # how much work they do depends on what they are given; others are timed on noise, which loads nothing
        stages = Stages(Console(stderr=True, soft_wrap=True))
        samples = samples_of(dataset_of(leaving, stages), leaving[0])
    jobs = [(v, config) for v in variants for config in runtime_configs(v, cores=cores.count)]
    jobs += [job for text in also for job in _also(text, variants) if job not in jobs]
    profiles = run_profiler(
        artifacts, jobs, cpus=cores.server or None, fresh=fresh, samples=samples,
        on_progress=lambda line: Console(stderr=True, soft_wrap=True).print(line, highlight=False),
    )  # fmt: skip
    if as_json:
        print(json.dumps([p.model_dump(mode="json") for p in profiles], indent=2))
        return
    rows = summary.profile_rows(profiles, variants)
    _console.print(summary.table(f"Profiles, on cores {cores.server or 'any'}", summary.PROFILE_HEADERS, rows))
    names = {v.id: v.name for v in variants}
    knees = [
        (f"{names[c.variant_id]} on {c.runtime}", str(c.knee.batch_size), f"{c.knee.throughput_rps:,.0f}",
         str(c.best.batch_size), f"{c.best.throughput_rps:,.0f}")
        for c in curves(profiles)
    ]  # fmt: skip
    headers = ("where larger batches stop paying", "knee at batch", "samples/s", "best at batch", "samples/s")
    _console.print(summary.table("Knees", headers, knees))


def _also(text: str, variants: list[Variant]) -> list[tuple[Variant, RuntimeConfig]]:
    """The variants that the runtime config in `text` executes. Raises ConfigError if there are none, or it is none."""
    from serve_apps.app import wrong_fields

    name, *fields = text.split(",")
    try:
        config = RuntimeConfig.model_validate({"name": name, **dict(field.split("=", 1) for field in fields)})
    except ValidationError as error:
        raise ConfigError(f"--runtime {text}: {wrong_fields(error, 'runtime')}") from error
    except ValueError as error:
        raise ConfigError(f"--runtime {text}: write it as torch,compile=true,threads=2") from error
    able = [(v, config) for v in variants if config.name in runtimes_for(v.format)]
    if not able:
        formats = ", ".join(sorted({v.format for v in variants}))
        raise ConfigError(f"--runtime {text}: {config.name} executes none of these variants ({formats}); name another")
    return able


def tune(
    *, name: str | None, slo_path: Path | None, model: str | None, data: str | None, study: str | None,
    output: Path | None, trials: int, finalists: int, time_s: float | None, protocol_name: str, store: Path | None,
    as_json: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Search for the configuration that serves the SLO best; see tune_spaces/tune.py."""
    from tune_spaces import tune as tuning
    from tune_spaces.search import SearchBudget
    from tune_spaces.stages import Stages

    slo, protocol = load_slo(slo_path), tuning.protocol_named(protocol_name)
    if (name is None) == (model is None and data is None):
        raise ConfigError(f"name={name!r}, --model={model!r}: pass the name of a model that has variants, or your own")
    console = Console(stderr=as_json, soft_wrap=True)
    stages, artifacts = Stages(console), _store(store)
    source, variants = None, []
    if name is None:
        source, dataset = _own(model, data, None, console)
        name = source.name
    else:
        variants = tuning.variants_named(artifacts, name)
    study = study or f"tune-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = (output or Path("runs")) / study
    if dry_run:
        floor = slo.accuracy.of(next((v.accuracy for v in variants if v.accuracy is not None), None))
        print(
            f"would make and measure the variants of {model}" if source else f"would tune {name}",
            f"for p99 within {slo.latency_p99_ms:g} ms and accuracy {floor}, measure {trials} configurations "
            f"live on a local cluster, and write {folder}/",
        )
        return
    stages.tell(f"{study}, into {folder}; interrupted, it goes on with --study {study} and the same options")
    signal.signal(signal.SIGTERM, terminated)
    if source is None:
        dataset = tuning.dataset_of(variants, stages)
    else:
        variants = _compressed(source, dataset, artifacts, folder, stages)
    budget = SearchBudget(
        trials=trials, promising=max(1, min(8, (trials + 1) // 2)), finalists=finalists, time_s=time_s
    )
    command = " ".join(
        [
            "sluice tune", *([f"--model {model} --data {data}"] if source else [name]), f"--study {study}",
            f"--trials {trials} --finalists {finalists} --protocol {protocol_name}",
            *([f"--slo {slo_path}"] if slo_path else []), *([f"--output {output}"] if output else []),
            *([f"--time-s {time_s:g}"] if time_s else []), *([f"--store {store}"] if store else []),
        ]
    )  # fmt: skip
    tuned, page = tuning.tune_and_report(
        variants, dataset, slo, artifacts, folder=folder, budget=budget, protocol=protocol, stages=stages,
        command=command,
    )  # fmt: skip
    _show_choice(tuned.plan, folder, page, console, as_json=as_json)


def _compressed(
    source: TrainedModel, dataset: LabelledDataset, store: ArtifactStore, folder: Path, stages: Stages
) -> list[Variant]:
    """The variants of the user's model: those that this study began with, else made now."""
    from train_jobs.compression.compress import build_variants
    from tune_spaces.tune import made_once

    made_of = {
        "name": source.name, "model": json.dumps(source.provenance.get("model")), "data": dataset.spec,
        "onnx_sha256": hashlib.sha256(source.onnx or b"").hexdigest(),
    }  # fmt: skip
    with stages.stage("compress: int8, bf16, pruned; each measured on the full test set in every runtime"):
        return made_once(
            folder, store, made_of, lambda: build_variants(store, source, dataset, notify=stages.say), stages
        )


def _show_choice(plan: Plan, folder: Path, page: Path, console: Console, *, as_json: bool) -> None:
    if as_json:
        print((page.parent / "report.json").read_text())
        return
    measured = {name: f"{value:,.5g}" for name, value in plan.measured.items() if isinstance(value, int | float)}
    rows = [("serves", str(plan)), *measured.items(), ("because", plan.made_by)]
    console.print(summary.table("The plan", ("", ""), rows))
    console.print(
        f"report        {page}  (and report.md, report.json)\nKubeRay       {folder / 'ray-service.yaml'}\n"
        f"Serve config  {folder / 'serve-config.yaml'}\n"
        f"try it        sluice serve --plan {folder / 'plan.json'}\n"
        f"deploy it     sluice deploy {folder / 'serve-config.yaml'} --address http://HEAD:8265"
    )


def report(*, folder: Path, store: Path | None, as_json: bool) -> None:
    """Choose and report again from what a study holds."""
    from tune_spaces import tune as tuning
    from tune_spaces.report.report import write
    from tune_spaces.stages import Stages

    console = Console(stderr=as_json, soft_wrap=True)
    tuned = tuning.tuned_from(folder, _store(store))
    files = tuning.write_plan(tuned.plan, folder)
    page = write(
        tuning.report_of(
            tuned, stages=Stages(console), began=time.monotonic(), commands=(tuned.study.header.command,), files=files
        ),
        folder,
    )
    _show_choice(tuned.plan, folder, page, console, as_json=as_json)


def serve_local(
    *, ref: str | None, plan_path: Path | None, port: int, host: str, also: list[str], direct_port: int | None,
    grpc_port: int | None, repository: bool, model: str | None, store: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    """Serve one variant, or a plan, in the foreground."""
    plan = _plan_to_serve(ref, plan_path, store)
    changed: dict[str, Any] = {}
    if also:
        changed["also"] = tuple(ArtifactStore(plan.store).get(each).id for each in also)
    if direct_port is not None:
        changed["direct_port"] = direct_port
    if repository:
        changed["repository"] = True
    if model is not None:
        changed["model_name"] = checked_name(model)
    plan = Plan.model_validate(plan.model_dump() | changed)
    if grpc_port is not None and (not 0 < grpc_port < 65536 or grpc_port in (port, plan.direct_port)):
        raise ConfigError(
            f"grpc_port={grpc_port} is no TCP port, or another of its ports; pass --grpc-port another one, say 9000"
        )
    config = serve_config(plan, http_host=host, http_port=port, grpc_port=grpc_port)
    if dry_run:
        print(to_yaml(config))
        return
    num_cpus = max(4, math.ceil(plan.num_replicas * plan.num_cpus_per_replica))
    with local.LocalCluster("serve", http_port=port, num_cpus=num_cpus) as cluster:
        cluster.deploy(config, timeout_s=120.0)
        _console.print(
            f"serving {plan.variant_name} at http://127.0.0.1:{port}/v2/models/{plan.model_name}"
            f"{'' if grpc_port is None else f' and over gRPC at 127.0.0.1:{grpc_port}'}; Ctrl-C stops it"
        )
        while cluster.is_running():
            time.sleep(0.5)
    _console.print("the cluster was stopped")


def _plan_to_serve(ref: str | None, path: Path | None, store: Path | None) -> Plan:
    """The plan in a file, or the plainest one for a variant. Raises ConfigError unless exactly one is named."""
    if (ref is None) == (path is None):
        raise ConfigError(f"variant={ref!r}, --plan={path}: pass the name of a variant, or a plan.json")
    if path is not None:
        try:
            return Plan.model_validate_json(path.read_text())
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise ConfigError(f"{path} is no plan ({error}); `sluice tune` writes one") from error
    artifacts = _store(store)
    variant = artifacts.get(ref or "")
    if variant.accuracy is not None:
        runtime = RuntimeConfig.model_validate({"name": variant.accuracy.runtime})
    else:
        runtime = RuntimeConfig(name=runtimes_for(variant.format)[0])
    return Plan(
        model_name="classifier", variant_id=variant.id, variant_name=variant.name, runtime=runtime,
        store=str(artifacts.root), made_by="sluice serve",
    )  # fmt: skip


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
