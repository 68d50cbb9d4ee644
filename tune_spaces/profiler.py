"""Variants x RuntimeConfigs x batch sizes -> Profiles, measured in processes of their own and kept for the next time.

A process per variant and runtime config, so that one runtime's thread pools and caches cannot disturb the next one's
figures. Each batch size is warmed up and repeated until its median's interval is narrow or its time is spent.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed
from cluster.hardware import fingerprint, profile_key
from cluster.local_supervisor import die_with_parent
from cluster.machine import read_gpus
from cluster.profiles import Profile, ProfileStore
from cluster.runtimes import RuntimeConfig, load_runtime, runtimes_for
from cluster.runtimes.base import Tensors
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import Variant

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS_PER_BATCH_SIZE = 0.6
_NARROW = 0.03
"""Stop early when the 95% interval of the median is within 3% of it on either side."""
_LONGEST_S = 1.0
"""Batches that take longer are not made larger still."""
_SAMPLES, _TURNS = 2048, 16
"""How many samples a measuring process gets; how many batches of them it takes in turn."""
Job = tuple[Variant, RuntimeConfig]


def profile_store(store: ArtifactStore) -> ProfileStore:
    """Profiles lie beside the variants that they are of."""
    return ProfileStore(store.root / "profiles")


def runtime_configs(variant: Variant, *, cores: int = 1) -> list[RuntimeConfig]:
    """Every installed runtime that executes the variant, with threads and streams in powers of two that together use at
    most `cores`."""
    sizes = [1 << k for k in range(cores.bit_length())]
    shapes = [(threads, streams) for threads in sizes for streams in sizes if threads * streams <= cores]
    return [
        RuntimeConfig(name=name, threads=threads, streams=streams)
        for name in runtimes_for(variant.format)
        for threads, streams in shapes
    ]


def profile(
    store: ArtifactStore,
    jobs: Sequence[Job],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    cpus: Sequence[int] | None = None,
    longest_s: float = _LONGEST_S,
    fresh: bool = False,
    samples: NDArray[np.generic] | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[Profile]:
    """Profile each job on `cpus` (None: any), one at a time; what was measured before on this hardware is not measured
    again unless `fresh`. Batch sizes after one that took over `longest_s` are left out.

    `samples` (N, ...) are what variants of one such input are given, a different batch at each call; others are given
    noise, which is as good where a graph does the same work for all of it. One with early exits does not.

    A job that fails is left out and `on_progress` told why; raises InferenceFailed with the last words if all fail.
    """
    kept = profile_store(store)
    profiles: list[Profile] = []
    failures: list[str] = []
    for number, (variant, config) in enumerate(jobs, start=1):
        what = f"{variant.name} on {config} ({number}/{len(jobs)})"
        known = [] if fresh else _known(kept, variant, config, batch_sizes, cpus, longest_s)
        if known:
            on_progress(f"{what}: known")
            profiles += known
            continue
        on_progress(what)
        try:
            measured = _in_own_process(store, variant, config, batch_sizes, cpus, longest_s, samples)
        except InferenceFailed as error:
            failures.append(str(error))
            on_progress(f"left out: {error}")
            continue
        kept.put(measured)
        profiles += measured
    if failures and not profiles:
        raise InferenceFailed(failures[-1])
    return profiles


def _known(
    kept: ProfileStore, variant: Variant, config: RuntimeConfig, batch_sizes: Sequence[int],
    cpus: Sequence[int] | None, longest_s: float,
) -> list[Profile]:  # fmt: skip
    """All that `batch_sizes` ask for, or nothing."""
    key = _key_on(cpus, config)
    found: list[Profile] = []
    for batch_size in sorted(batch_sizes):
        if found and found[-1].latency_p50_s > longest_s:
            break
        profile = kept.get(variant.id, config, batch_size, key)
        if profile is None:
            return []
        found.append(profile)
    return found


def _key_on(cpus: Sequence[int] | None, config: RuntimeConfig) -> str:
    """`profile_key` as the measuring process will see it."""
    if not cpus or not hasattr(os, "sched_setaffinity"):
        return _key(config)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
        return _key(config)
    finally:
        os.sched_setaffinity(0, before)


def _key(config: RuntimeConfig) -> str:
    gpus = read_gpus() if config.device != "cpu" else ()
    return profile_key(config.name, gpus=[f"{gpu.name}, driver {gpu.driver}" for gpu in gpus])


def _in_own_process(
    store: ArtifactStore, variant: Variant, config: RuntimeConfig, batch_sizes: Sequence[int],
    cpus: Sequence[int] | None, longest_s: float, samples: NDArray[np.generic] | None,
) -> list[Profile]:  # fmt: skip
    job: dict[str, Any] = {
        "store": str(store.root),
        "variant": variant.id,
        "runtime": config.model_dump(),
        "batch_sizes": sorted(batch_sizes),
        "cpus": list(cpus or []),
        "longest_s": longest_s,
    }
    with tempfile.TemporaryDirectory() as folder:
        if samples is not None and takes(variant, samples):
            job["samples"] = f"{folder}/samples.npy"
            np.save(job["samples"], samples[:_SAMPLES], allow_pickle=False)
        done = subprocess.run(
            [sys.executable, "-m", "tune_spaces.profiler", json.dumps(job)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise InferenceFailed(
            f"profiling {variant.name} on {config} in a process of its own ended with code {done.returncode}: "
            f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return [Profile.model_validate(row) for row in json.loads(done.stdout.splitlines()[-1])]


def median_interval(sample: NDArray[np.float64]) -> tuple[float, float]:
    """Distribution-free 95% interval of the median by order statistics (normal approximation of the binomial)."""
    ordered = np.sort(sample)
    half = 0.98 * np.sqrt(len(ordered))
    low = max(0, int(np.floor(len(ordered) / 2 - half)))
    high = min(len(ordered) - 1, int(np.ceil(len(ordered) / 2 + half)))
    return float(ordered[low]), float(ordered[high])


def time_batches(run: Callable[[], object], *, budget_s: float = _SECONDS_PER_BATCH_SIZE) -> NDArray[np.float64]:
    """Seconds of each repetition of `run`: three warm-up calls, then at least 10 until narrow or out of budget."""
    for _ in range(3):
        run()
    took: list[float] = []
    end = time.perf_counter() + budget_s
    while len(took) < 10 or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
        if len(took) >= 30 and len(took) % 10 == 0:
            sample = np.asarray(took)
            low, high = median_interval(sample)
            middle = float(np.median(sample))
            if high - middle < _NARROW * middle and middle - low < _NARROW * middle:
                break
    return np.asarray(took)


def takes(variant: Variant, samples: NDArray[np.generic]) -> bool:
    """Is it of one input, and are these (N, ...) that?"""
    spec = variant.inputs[0]
    fits = len(samples) > 0 and samples.ndim == len(spec.shape) and samples.dtype == NUMPY_OF_DATATYPE[spec.datatype]
    return fits and len(variant.inputs) == 1 and all(
        wanted in (-1, got) for wanted, got in zip(spec.shape[1:], samples.shape[1:], strict=True)
    )


def _batches(variant: Variant, batch_size: int, samples: NDArray[np.generic] | None) -> list[Tensors]:
    """Of the samples, which follow one another from batch to batch and begin anew at the end; without any one of
    noise."""
    if samples is not None:
        rows = [np.arange(k * batch_size, (k + 1) * batch_size) % len(samples) for k in range(_TURNS)]
        return [{variant.inputs[0].name: np.ascontiguousarray(samples[each])} for each in rows]
    rng = np.random.default_rng(0)
    return [{
        spec.name: rng.integers(0, 255, variant.example_shape(spec, batch_size)).astype(
            NUMPY_OF_DATATYPE[spec.datatype]
        )
        for spec in variant.inputs
    }]  # fmt: skip


def _profile_here(job: dict[str, Any]) -> list[dict[str, Any]]:
    if job["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cpus"])
    store = ArtifactStore(Path(job["store"]))
    variant = store.get(job["variant"])
    config = RuntimeConfig.model_validate(job["runtime"])
    process = psutil.Process()
    before = process.memory_info().rss
    runtime = load_runtime(store, variant, config)
    samples = np.load(job["samples"], allow_pickle=False) if "samples" in job else None
    rows: list[dict[str, Any]] = []
    for batch_size in job["batch_sizes"]:
        batches = itertools.cycle(_batches(variant, batch_size, samples))
        took = time_batches(lambda batches=batches: runtime.infer(next(batches)))  # type: ignore[misc]
        middle = float(np.median(took))
        rows.append(
            Profile(
                variant_id=variant.id,
                runtime=config,
                batch_size=batch_size,
                latency_p50_s=middle,
                latency_p50_interval_s=median_interval(took),
                latency_p90_s=float(np.quantile(took, 0.90)),
                latency_p99_s=float(np.quantile(took, 0.99)),
                repeats=len(took),
                throughput_rps=batch_size / middle,
                memory_bytes=max(0, process.memory_info().rss - before),
                hardware_key=_key(config),
                hardware=fingerprint(),
            ).model_dump(mode="json")
        )
        if middle > job["longest_s"]:
            break
    runtime.close()
    return rows


if __name__ == "__main__":
    die_with_parent()
    print(json.dumps(_profile_here(json.loads(sys.argv[1]))))
