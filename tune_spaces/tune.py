"""`sluice tune`: variants + SLO -> profiles -> search on a warm deployment -> Study and Plan, written and reported.

`tune` is the same for the command, the demo, a notebook and a Ray job. Everything is kept in one folder; interrupted or
killed, the same call with the same folder goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from cluster import manifests, native
from cluster.artifacts import ArtifactStore
from cluster.control.planner import choose
from cluster.control.serve_config import serve_config, to_yaml
from cluster.errors import ConfigError, VariantNotFound
from cluster.hardware import fingerprint, profile_key
from cluster.load import Target
from cluster.local import LocalCluster
from cluster.plans import Configuration, Plan
from cluster.profiles import Curve, Profile, curves
from cluster.runtimes import RuntimeConfig
from cluster.slo import Slo
from cluster.studies import Study, StudyHeader, StudyStore
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import Variant
from tune_spaces.live import TRIAL_PROTOCOLS, LiveDeployment, TrialProtocol
from tune_spaces.measure import Bench
from tune_spaces.profiler import profile, runtime_configs, takes
from tune_spaces.report.report import Report, write
from tune_spaces.search import Recorder, Search, SearchBudget
from tune_spaces.spaces import SearchSpace, candidates, search_space
from tune_spaces.stages import Cores, Stages
from tune_spaces.traffic import target_of

_SPACE = "space.json"
"""What was searched, kept beside the study."""
_SAMPLES = 256
"""Of which the load is made."""
_MOST_RPS = 12_000.0
"""The client is not asked to prove more than this: one core of it holds no more."""


@dataclass(frozen=True)
class Tuned:
    """What a search gives: the question with all trials, the answer, and what both rest on."""

    study: Study
    plan: Plan
    variants: tuple[Variant, ...]
    space: SearchSpace

    @property
    def curves(self) -> list[Curve]:
        return list(self.space.curves.values())


def protocol_named(name: str) -> TrialProtocol:
    """Raises ConfigError listing the names there are."""
    if name not in TRIAL_PROTOCOLS:
        raise ConfigError(f"protocol={name!r} is unknown; pass --protocol with one of {sorted(TRIAL_PROTOCOLS)}")
    return TRIAL_PROTOCOLS[name]


def variants_named(store: ArtifactStore, name: str) -> list[Variant]:
    """All variants called "<name>/...", parents before children. Raises ConfigError if there are none."""
    found = [store.get(ref) for ref in store.refs() if ref.rsplit("/", 1)[0] == name]
    if not found:
        models = sorted({ref.rsplit("/", 1)[0] for ref in store.refs() if "/" in ref and not ref.startswith("active/")})
        raise ConfigError(
            f"no variants called {name}/... in {store.root}; there are {', '.join(models) or 'none at all'}: make them "
            f"with `sluice compress {name}`, or bring a model with --model and --data"
        )
    placed: list[Variant] = []
    while rest := [v for v in found if v not in placed]:
        ready = [v for v in rest if not any(v.parent_id == other.id for other in rest)]
        placed += sorted(ready or rest, key=lambda v: (v.created_at, v.name))
    return placed


def made_once(
    folder: Path, store: ArtifactStore, source: Mapping[str, str], make: Callable[[], list[Variant]], stages: Stages
) -> list[Variant]:
    """What `make` makes, or what it made when this study was begun: made again, a variant may get another id (training
    in several threads adds up in another order), and the study would be of other variants.

    `source` says what they are made of; of another source they are made anew.
    """
    path = folder / "variants.json"
    with suppress(OSError, ValueError, KeyError, TypeError, VariantNotFound):
        kept = json.loads(path.read_text())
        if kept["source"] == dict(source):
            variants = [store.get(variant_id) for variant_id in kept["ids"]]
            stages.tell(f"the {len(variants)} variants are those that {folder.name} began with")
            return variants
    variants = make()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"source": dict(source), "ids": [v.id for v in variants]}))
    os.replace(unfinished, path)
    return variants


def dataset_of(variants: Sequence[Variant], stages: Stages) -> Any:
    """The data set that the variants were measured on, for the samples that the load is made of."""
    from train_jobs import datasets
    from train_jobs.config import TrainConfig

    described = variants[0].provenance.get("dataset")
    spec = described.get("spec") or described.get("name") if isinstance(described, dict) else None
    if not isinstance(spec, str):
        raise ConfigError(f"variant {variants[0].name} does not say what it was measured on; make it again")
    config = variants[0].provenance.get("config")
    if isinstance(config, dict):  # of a run, whose task knows its kinds of data
        return TrainConfig.model_validate(config).task.load(spec, notify=stages.notice)
    return datasets.load(spec, notify=stages.notice)


def samples_of(dataset: Any, variant: Variant) -> NDArray[np.generic]:
    """What the load is made of (256, ...): pictures of the test part where `variant` takes such; of what is drawn, as a
    generator's latent numbers, and of windows of series, noise with mean 0 and deviation 1, as they have."""
    pictures = getattr(dataset, "x_test", None)
    if isinstance(pictures, np.ndarray) and takes(variant, pictures):
        return pictures[:_SAMPLES]
    spec, rng = variant.inputs[0], np.random.default_rng(0)
    shape, kind = variant.example_shape(spec, _SAMPLES), NUMPY_OF_DATATYPE[spec.datatype]
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    return rng.integers(0, 2 if kind.kind == "b" else 255, shape).astype(kind)


def tune(
    variants: Sequence[Variant], dataset: Any, slo: Slo, store: ArtifactStore, *, folder: Path,
    budget: SearchBudget, protocol: TrialProtocol, stages: Stages, command: str = "",
) -> Tuned:  # fmt: skip
    """Profile, search, choose. The study is kept in `folder`/study and resumed from there.

    Raises ConfigError where the SLO contradicts itself, the machine or the variants, before anything is deployed; and,
    with what came nearest, where no configuration keeps it.
    """
    cores = Cores.split(slo.budget.cores)
    samples = samples_of(dataset, variants[0])
    space = space_of(variants, slo, store, cores=cores, stages=stages, samples=samples)
    baseline = baseline_of(space, variants)
    records = StudyStore((folder / "study").resolve())  # trials run in a worker, which has a folder of its own
    records.open(header_of(variants, slo, space, protocol, cores, name=folder.name, command=command))
    _keep_space(space, folder)
    variant = next(v for v in variants if v.id == baseline.variant_id)

    def target(host: str, port: int) -> Target:
        return target_of(host, port, slo.model_name, variant, samples)

    with live_deployment(space, baseline, target, slo, store, cores, protocol, stages, folder.name) as live:
        recorder = Recorder(live.deployment, protocol, records, space, live.empty_replica_bytes)
        with stages.stage("tune: measure the promising live, and what Optuna proposes"):
            search = Search(recorder, budget, baseline, ray_address=live.ray_address, say=stages.tell)
            study = search.run()
    return Tuned(study, plan_from(study, space, store), tuple(variants), space)


def tuned_from(folder: Path, store: ArtifactStore) -> Tuned:
    """The same from a study that was measured before, finished or not; measures nothing, and profiles nothing anew.

    Raises ConfigError if `folder` holds no study, VariantNotFound if its variants are gone.
    """
    study = StudyStore(folder / "study").read()
    header, path = study.header, folder / _SPACE
    try:
        kept = json.loads(path.read_text())
        profiles = [Profile.model_validate(row) for row in kept["profiles"]]
        left_out = [(what, why) for what, why in kept["left_out"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); go on with the study, which writes it anew") from error
    variants = [store.get(variant_id) for variant_id in header.variants]
    cores = max(1, len(header.cpus["server"]))
    space = search_space(variants, curves(profiles), header.slo, cores=cores, left_out=left_out)
    return Tuned(study, plan_from(study, space, store), tuple(variants), space)


def _keep_space(space: SearchSpace, folder: Path) -> None:
    profiles = [point.model_dump(mode="json") for curve in space.curves.values() for point in curve.points]
    path = folder / _SPACE
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"profiles": profiles, "left_out": space.left_out}))
    os.replace(unfinished, path)


def plan_from(study: Study, space: SearchSpace, store: ArtifactStore) -> Plan:
    """The best of the study, with what the profiles alone said of it. Raises ConfigError if nothing keeps the SLO."""
    slo = study.header.slo
    plan = choose(study, store=store.root)
    figures = asdict(space.predict(plan, slo))
    for other in ("memory_bytes", "core_s_per_million"):  # of runtime and variant alone; at full batches
        del figures[other]
    predicted: dict[str, Any] = {name: value for name, value in figures.items() if _finite(value)}
    return plan.model_copy(update={"predicted": predicted})


def _finite(value: float | None) -> bool:
    return value is not None and value < float("inf")


def space_of(
    variants: Sequence[Variant], slo: Slo, store: ArtifactStore, *, cores: Cores, stages: Stages,
    samples: NDArray[np.generic] | None = None,
) -> SearchSpace:  # fmt: skip
    """Refuse what cannot be, profile what may be (on `samples`, as `profile` says), and return what is left to
    search."""
    slo.refuse_impossible(
        cores=cores.count, memory_bytes=psutil.virtual_memory().total, root=variants[0].accuracy
    )
    allowed, left_out = candidates(variants, slo, pays=native.pays)
    jobs: list[tuple[Variant, RuntimeConfig]] = [
        (variant, config)
        for variant, runtime in allowed
        for config in runtime_configs(variant, cores=cores.count)
        if config.name == runtime
    ]
    with stages.stage("profile: every variant that may be served in every runtime, a process each"):
        profiles = profile(store, jobs, cpus=cores.server or None, samples=samples, on_progress=stages.say)
    return search_space(variants, curves(profiles), slo, cores=cores.count, left_out=left_out)


def baseline_of(space: SearchSpace, variants: Sequence[Variant]) -> Configuration:
    """What one has without a search: the least changed variant, one thread, one request a batch, a long queue."""
    order = [v.id for v in sorted(variants, key=lambda v: (v.precision != "fp32", v.format != "onnx", len(v.passes)))]
    variant_id, runtime = min(
        space.curves, key=lambda key: (order.index(key[0]), key[1].cores, key[1].name != "onnxruntime", str(key[1]))
    )
    return next(
        c for c in reversed(space.configurations())
        if (c.variant_id, c.runtime, c.max_batch_size) == (variant_id, runtime, 1)
    )  # fmt: skip


def header_of(
    variants: Sequence[Variant], slo: Slo, space: SearchSpace, protocol: TrialProtocol, cores: Cores, *, name: str,
    command: str,
) -> StudyHeader:  # fmt: skip
    """What the study asks, and on which machine."""
    runtimes = sorted({runtime.name for _, runtime in space.curves})
    keys = ",".join(profile_key(runtime) for runtime in runtimes)
    figure = next((v.accuracy for v in variants if v.accuracy is not None), None)
    judged = {} if figure is None else {"metric": figure.metric, "higher_is_better": figure.higher_is_better}
    return StudyHeader(
        name=name,
        slo=slo,
        variants={v.id: v.name for v in variants},
        accuracies={v.id: {a.runtime: a.value for a in v.accuracies} for v in variants},
        **judged,
        protocol=asdict(protocol),
        cpus={"server": cores.server, "client": cores.client},
        hardware=fingerprint(),
        hardware_key=hashlib.sha256(keys.encode()).hexdigest()[:16],
        command=command,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class Live:
    """A deployment that runs, and what is known of it before any trial."""

    deployment: LiveDeployment
    ray_address: str
    empty_replica_bytes: int
    """Resident memory of a replica without runtime and variant."""


@contextmanager
def live_deployment(
    space: SearchSpace, baseline: Configuration, target: Callable[[str, int], Target], slo: Slo, store: ArtifactStore,
    cores: Cores, protocol: TrialProtocol, stages: Stages, name: str,
) -> Iterator[Live]:  # fmt: skip
    """The baseline on a local cluster of its own, with the client's own proof. `target` makes the load for host and
    port."""
    with LocalCluster(f"{name}-tune", cpus=cores.server, num_cpus=max(4, 2 * cores.count)) as cluster:
        with stages.stage("deploy: replicas that stay warm for all trials"):
            host, port = "127.0.0.1", cluster.http_port
            deployment = LiveDeployment(
                dashboard_address=cluster.dashboard_address, host=host, port=port, slo=slo, store=store.root,
                target=target(host, port), first=baseline, server_cpus=cores.server or None,
                client_cpus=cores.client or None, client_holds_rps=0.0, supervisor_pid=cluster.pids()[0],
            )  # fmt: skip
            deployment.apply(baseline)
            replica_bytes = deployment.memory_bytes() // baseline.num_replicas
            loaded = max(p.memory_bytes for p in space.curve(baseline).points)
            holds = _client_holds_rps(deployment, space, protocol, stages)
        yield Live(replace(deployment, client_holds_rps=holds), cluster.address, max(0, replica_bytes - loaded))


def _client_holds_rps(
    deployment: LiveDeployment, space: SearchSpace, protocol: TrialProtocol, stages: Stages
) -> float:
    """What the load generator holds against a null server: as much as any trial may need, or less; 0.0 is nothing."""
    slo = deployment.slo
    bench = Bench(protocol.as_protocol(slo), deployment.client_cpus, deployment.server_cpus, stages.say)
    most = max(space.predict(c, slo).capacity_rps for c in space.configurations())
    check = bench.self_check(min(_MOST_RPS, 1.25 * max(most, slo.peak_rps() or 0.0)))
    if not check.ok:
        stages.notice("the load generator holds no rate on this machine: SLO rates can't be told")
        return 0.0
    return check.rate


def write_plan(plan: Plan, folder: Path) -> dict[str, str]:
    """plan.json, serve-config.yaml for `serve deploy`, ray-service.yaml for KubeRay; what each is for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(plan.model_dump_json(indent=2))
    (folder / "serve-config.yaml").write_text(to_yaml(serve_config(plan, http_host="0.0.0.0", http_port=8000)))
    (folder / "ray-service.yaml").write_text(manifests.to_yaml(manifests.render_ray_service(plan)))
    return {
        "plan.json": "what was chosen and why",
        "serve-config.yaml": "for `sluice deploy` and `serve deploy`",
        "ray-service.yaml": "for KubeRay",
    }


def report_of(
    tuned: Tuned, *, stages: Stages, began: float, commands: Sequence[str], files: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Everything that the pages show; `began` is time.monotonic() of the start."""
    return Report(
        run_name=tuned.study.header.name, slo=tuned.study.header.slo, study=tuned.study, plan=tuned.plan,
        variants=tuned.variants, curves=tuned.curves, left_out=tuned.space.left_out, comparison=None,
        stage_seconds=stages.seconds, total_seconds=time.monotonic() - began, commands=tuple(commands),
        files=dict(files), notes=(*stages.notices, *notes),
    )  # fmt: skip


def tune_and_report(
    variants: Sequence[Variant], dataset: Any, slo: Slo, store: ArtifactStore, *, folder: Path,
    budget: SearchBudget, protocol: TrialProtocol, stages: Stages, command: str,
) -> tuple[Tuned, Path]:  # fmt: skip
    """`tune`, then the plan's files and the report in `folder`; returns the page's path too."""
    began = time.monotonic()
    tuned = tune(
        variants, dataset, slo, store, folder=folder, budget=budget, protocol=protocol, stages=stages, command=command
    )
    files = write_plan(tuned.plan, folder)
    repeat = [command, f"sluice deploy {os.path.relpath(folder)}/serve-config.yaml --address http://HEAD:8265"]
    report = report_of(tuned, stages=stages, began=began, commands=repeat, files=files)
    return tuned, write(report, folder)
