"""A Report as a tune on two cores makes it, without measuring: figures follow from a simple model of a server, so that
larger batches pay until they leave the cache and p99 rises with the load. The same seed always gives the same report.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram

from cluster import stats
from cluster.plans import Configuration, Plan
from cluster.profiles import Curve, Profile
from cluster.runtimes import RuntimeConfig
from cluster.slo import Slo
from cluster.studies import LiveFigures, Origin, Study, StudyHeader, Trial
from cluster.variants import Accuracy, ArtifactFile, Difference, Pass, Precision, TensorSpec, Variant
from tune_spaces.measure import QUICK, Comparison, Figures
from tune_spaces.report.report import Report

HARDWARE: dict[str, Any] = {
    "cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "flags": ["avx2", "avx512f", "avx512_vnni"],
    "caches": {"L1d": "2 x 32 KiB", "L2": "2 x 2 MiB", "L3": "1 x 260 MiB"}, "memory_bytes": 25_276_510_208,
    "kernel": "6.18.44", "python": "3.11.7", "cores_usable": 2,
    "libraries": {"ray": "2.60.0", "torch": "2.14.1", "onnxruntime": "1.32.0", "openvino": "2026.3.0"},
}  # fmt: skip
_SERIAL_S = {"torch": 0.9e-3, "onnxruntime": 0.12e-3, "openvino": 0.10e-3}
_SAMPLE_S = {"fp32-torch": 120e-6, "fp32": 62e-6, "int8": 24e-6, "bf16": 40e-6, "pruned": 41e-6, "pruned-int8": 19e-6}
_RIGHT = {"fp32-torch": 9161, "fp32": 9161, "int8": 9163, "bf16": 9160, "pruned": 9134, "pruned-int8": 9071}
_REQUEST_S = 0.26e-3
REFERENCE_RPS = 400.0


def accuracy(right: int, runtime: str, root_id: str | None) -> Accuracy:
    """Of 10,000 pictures; the difference to the root as if most disagreements went one way."""
    value, lost = right / 1e4, (right - 9161) / 1e4
    width = 0.0012 + abs(lost) / 4
    difference = None if root_id is None else Difference(
        other_id=root_id, value=lost, interval=(lost - width, lost + width),
        bounds=(lost - 0.84 * width, lost + 0.84 * width), worst_class_drop=abs(lost) * 2,
    )  # fmt: skip
    return Accuracy(
        value=value, correct=right, total=10_000, interval=stats.jeffreys(right, 10_000), dataset="fashion-mnist",
        runtime=runtime, to_parent=difference, to_root=difference,
    )  # fmt: skip


def variant(
    name: str, short: str, parent: Variant | None, root: Variant | None, passes: tuple[str, ...], kib: int,
    precision: Precision = "fp32",
) -> Variant:  # fmt: skip
    is_torch = short == "fp32-torch"
    runtimes = ("torch",) if is_torch else ("onnxruntime", "openvino")
    right = _RIGHT[short]
    return Variant(
        name=name, family="cnn", parent_id=parent.id if parent else None,
        passes=tuple(Pass(name=step) for step in passes), format="torch_export" if is_torch else "onnx",
        precision=precision,
        files=(ArtifactFile(path="model.pt2" if is_torch else "model.onnx", sha256="0" * 64, size_bytes=kib << 10),),
        inputs=(TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
        accuracies=tuple(
            accuracy(right - 2 * k, runtime, root.id if root else None) for k, runtime in enumerate(runtimes)
        ),
    )  # fmt: skip


def variants(folder: str = "cnn_fashion_mnist") -> dict[str, Variant]:
    """By the last part of their names."""
    root = variant(f"{folder}/fp32-torch", "fp32-torch", None, None, ("train",), 388)
    fp32 = variant(f"{folder}/fp32", "fp32", root, root, ("export_onnx",), 385)
    pruned = variant(f"{folder}/pruned", "pruned", root, root, ("prune_channels", "finetune", "export_onnx"), 201)
    int8_passes = ("quantize_static_int8",)
    return {
        "fp32-torch": root,
        "fp32": fp32,
        "int8": variant(f"{folder}/int8", "int8", fp32, root, int8_passes, 117, "int8"),
        "bf16": variant(f"{folder}/bf16", "bf16", fp32, root, ("cast_bf16",), 196, "bf16"),
        "pruned": pruned,
        "pruned-int8": variant(f"{folder}/pruned-int8", "pruned-int8", pruned, root, int8_passes, 63, "int8"),
    }


def batch_s(short: str, runtime: RuntimeConfig, size: int) -> float:
    """Seconds of one batch; beyond 64 rows its tensors leave the cache."""
    spilled = 1.0 + 0.12 * max(0.0, math.log2(size / 64))
    return _SERIAL_S[runtime.name] + size * _SAMPLE_S[short] * spilled


def curve(one: Variant, runtime: RuntimeConfig) -> Curve:
    short = one.name.rsplit("/", 1)[-1]

    def profile(size: int) -> Profile:
        p50 = batch_s(short, runtime, size)
        return Profile(
            variant_id=one.id, runtime=runtime, batch_size=size, latency_p50_s=p50,
            latency_p50_interval_s=(p50 * 0.98, p50 * 1.02), latency_p90_s=p50 * 1.1, latency_p99_s=p50 * 1.3,
            repeats=200, throughput_rps=size / p50, memory_bytes=60 << 20, hardware_key="k", hardware=HARDWARE,
        )  # fmt: skip

    return Curve(tuple(profile(1 << exponent) for exponent in range(9)))


def histogram(p50_s: float, p99_s: float, seed: int, count: int = 2000) -> str:
    """Lognormal latencies with about these quantiles, as `LoadResult.histogram` writes them."""
    sigma = math.log(p99_s / p50_s) / 2.326
    made = HdrHistogram(1, 3_600_000_000, 3)
    for value in np.random.default_rng(seed).lognormal(math.log(p50_s * 1e6), sigma, count):
        made.record_value(int(value))
    return str(made.encode().decode("ascii"))


def figures(configuration: Configuration, short: str, seed: int) -> LiveFigures:
    """What such a server would show."""
    noise = float(np.random.default_rng(seed).normal(1.0, 0.02))
    size = configuration.max_batch_size
    cycle = batch_s(short, configuration.runtime, size) + size * _REQUEST_S + 1e-3
    most = size / cycle * noise
    slo_rate = most * (0.8 if cycle < 0.05 else 0.5)
    load = REFERENCE_RPS / most
    p50 = (1.2e-3 + cycle / 12) * noise
    p99 = None if load > 1 else p50 * (2.2 + 1.5 * load / (1.02 - load) / 10)
    return LiveFigures(
        max_rate_rps=most, slo_rate_rps=slo_rate, slo_rate_is_a_floor=False, reference_rate_rps=REFERENCE_RPS,
        latency_p50_s=None if p99 is None else p50, latency_p99_s=p99, attainment=0.4 if p99 is None else 0.999,
        error_rate=0.1 if p99 is None else 0.0, core_s_per_million=1e6 / most * 1.1, memory_bytes=(310 << 20) + size,
        client_cpu_share=0.2, p99_by_rate=((slo_rate, 0.049), (slo_rate * 1.2, None)),
        latency_histogram=histogram(p50, p99 or 1.0, seed),
    )  # fmt: skip


def trial(number: int, one: Variant, runtime: RuntimeConfig, size: int, origin: Origin, **more: Any) -> Trial:
    configuration = Configuration(
        variant_id=one.id, variant_name=one.name, runtime=runtime, max_batch_size=size,
        max_queued_requests=max(256, size),
    )  # fmt: skip
    measured = {"figures": figures(configuration, one.name.rsplit("/", 1)[-1], number)}
    return Trial(
        number=number, configuration=configuration, origin=origin, seed=number,
        started_at="2026-12-01T10:00:00+00:00", took_s=14.2, **(more or measured),
    )  # fmt: skip


def trials(made: dict[str, Variant], error: str = "replica died: out of memory") -> tuple[Trial, ...]:
    """A baseline, the best of each pair by profiles, what Optuna asked for, one that failed, and confirmations."""
    ort, ov, torch = (RuntimeConfig(name=name) for name in ("onnxruntime", "openvino", "torch"))  # type: ignore[arg-type]
    plan: list[tuple[str, RuntimeConfig, int, Origin]] = [
        ("fp32-torch", torch, 1, "baseline"), ("int8", ov, 64, "profiles"), ("int8", ort, 64, "profiles"),
        ("pruned", ov, 64, "profiles"), ("fp32", ov, 64, "profiles"), ("bf16", ort, 32, "profiles"),
        ("pruned", ort, 32, "optuna"), ("int8", ov, 16, "optuna"), ("int8", ov, 128, "optuna"),
        ("fp32", ort, 8, "optuna"), ("int8", ort, 128, "optuna"), ("bf16", ov, 64, "optuna"),
        ("pruned", ov, 128, "optuna"), ("int8", ov, 32, "optuna"), ("int8", ov, 4, "optuna"),
        ("fp32", ov, 256, "optuna"), ("int8", ov, 64, "confirm"), ("int8", ov, 128, "confirm"),
        ("int8", ov, 64, "confirm"),
    ]  # fmt: skip
    told = [trial(k, made[name], runtime, size, origin) for k, (name, runtime, size, origin) in enumerate(plan, 1)]
    return (*told[:10], trial(11, made["bf16"], ov, 256, "optuna", error=error),
            *(each.model_copy(update={"number": each.number + 1}) for each in told[10:]))  # fmt: skip


def study(made: dict[str, Variant], slo: Slo, error: str = "replica died: out of memory") -> Study:
    header = StudyHeader(
        name="tune-20261201", slo=slo, variants={v.id: v.name for v in made.values()},
        accuracies={v.id: {a.runtime: a.value for a in v.accuracies} for v in made.values()},
        protocol={"name": "quick", "step_s": 2.0, "warmup_s": 0.5, "steps": 3, "closed_loop_s": 1.5},
        cpus={"server": [0], "client": [1]}, hardware=HARDWARE, hardware_key="k", command="sluice tune",
        created_at="2026-12-01T09:58:00+00:00",
    )  # fmt: skip
    return Study(header, trials(made, error))


def comparison() -> Comparison:
    """As a demo with the quick protocol finds it; plain dicts, so that each caller may change his own."""

    def side(slo_rate: float, most: float, p50: float, p99: float, cost: float, seed: int) -> Figures:
        return Figures(
            slo_rate={"50ms": slo_rate},
            slo_rate_per_seed={"50ms": {1: slo_rate * 0.9, 2: slo_rate, 3: slo_rate * 1.1}},
            p99_by_rate=[(slo_rate, 0.049), (slo_rate * 1.3, None)], slo_rate_is_a_floor={"50ms": False},
            max_rates=[most * 0.98, most, most * 1.02], max_rate_costs=[cost], utilisations=[0.8], latency_p50_s=p50,
            latency_p99_s=p99, core_s_per_million_equal_load=cost * 2,
            latency_histograms=[histogram(p50, p99, seed + k) for k in range(3)],
        )  # fmt: skip

    return Comparison(
        protocol=QUICK, server_cpus=[0], client_cpus=[1], equal_load_rate=17.5, equal_load_from="slo rate",
        self_check={"ok": True, "rate": 3632.0, "send_lag_p99_s": 0.00029, "latency_p99_s": math.inf},
        before=side(25.0, 80.0, 12.41e-3, 50.63e-3, 10_214.0, 7),
        after=side(2010.0, 2905.0, 1.54e-3, 5.02e-3, 318.0, 70),
        client_cpu_share=0.06,
    )  # fmt: skip


def report(
    *, compared: bool = True, folder: str = "cnn_fashion_mnist", slo: Slo | None = None, error: str = "out of memory",
    run_name: str = "demo-20261201", **more: Any,
) -> Report:  # fmt: skip
    """The whole value. `folder` names the variants, so a hostile one reaches every table and plot."""
    slo, made = slo or Slo(), variants(folder)
    studied = study(made, slo, error)
    chosen = next(trial for trial in studied.trials if trial.origin == "confirm").configuration
    best = next(o for o in studied.outcomes() if o.configuration.key == chosen.key)
    plan = Plan(
        **chosen.model_dump(), model_name="classifier", store="/var/lib/sluice/store",
        predicted={"capacity_rps": 2700.0, "slo_rate_rps": 2150.0, "latency_p99_s": 0.0061, "core_s_per_million": 370.0,
                   "memory_bytes": 62 << 20},
        measured={"slo_rate_rps": best.slo_rate_rps, "max_rate_rps": best.max_rate_rps,
                  "latency_p99_s": best.latency_p99_s, "core_s_per_million": best.core_s_per_million,
                  "memory_bytes": best.memory_bytes},
        made_by="study tune-20261201: best of 17 configurations measured live by max_rate",
    )  # fmt: skip
    pairs = [(made[name], RuntimeConfig(name=runtime)) for name in ("fp32", "int8", "bf16", "pruned")
             for runtime in ("onnxruntime", "openvino")]  # type: ignore[arg-type]  # fmt: skip
    known: dict[str, Any] = {
        "run_name": run_name, "slo": slo, "study": studied, "plan": plan, "variants": list(made.values()),
        "curves": [curve(one, runtime) for one, runtime in pairs],
        "left_out": [
            (f"{folder}/pruned-int8 on {runtime}", f"accuracy {value}: fails (at most 0.5% below the trained model)")
            for runtime, value in (("onnxruntime", 0.9071), ("openvino", 0.9069))
        ],
        "comparison": comparison() if compared else None,
        "stage_seconds": {"train": 61.2, "compress": 44.0, "profile": 52.3, "search": 271.4}, "total_seconds": 428.9,
        "commands": ["sluice demo --run demo-20261201 --protocol quick", "serve deploy serve-config.yaml"],
        "files": {"plan.json": "the plan", "serve-config.yaml": "for serve deploy", "ray-service.yaml": "for KubeRay"},
    }  # fmt: skip
    return Report(**known | more)


def by_error(report: Report) -> Report:
    """The same report of a forecaster: the share of wrong answers as an error, a lost point as 10% of it."""

    def difference(of: Difference | None) -> Difference | None:
        if of is None:
            return None
        ends = {name: tuple(10 * end for end in getattr(of, name)) for name in ("interval", "bounds")}
        return of.model_copy(update={"value": 10 * of.value, **ends, "relative": True, "worst_class_drop": None})

    def changed(of: Accuracy) -> Accuracy:
        low, high = of.interval
        return of.model_copy(update={
            "metric": "mse", "higher_is_better": False, "correct": None, "value": 1 - of.value,
            "interval": (1 - high, 1 - low), "bounds": (1 - high, 1 - low),
            "to_parent": difference(of.to_parent), "to_root": difference(of.to_root),
        })  # fmt: skip

    told = [v.model_copy(update={"accuracies": tuple(map(changed, v.accuracies))}) for v in report.variants]
    known = {v.id: {a.runtime: a.value for a in v.accuracies} for v in told}
    header = report.study.header.model_copy(
        update={"metric": "mse", "higher_is_better": False, "accuracies": known}
    )  # fmt: skip
    return replace(report, variants=told, study=Study(header, report.study.trials))
