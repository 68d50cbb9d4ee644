"""Variant x RuntimeConfig x batch sizes -> Profiles, measured in a process of its own.

A process per variant, so that one runtime's thread pools and caches cannot disturb the next one's figures. Each batch
size is warmed up and repeated until its median's interval is narrow or its time is spent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed
from cluster.hardware import fingerprint
from cluster.local_supervisor import die_with_parent
from cluster.profiles import Profile
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import Variant

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS_PER_BATCH_SIZE = 0.6
_NARROW = 0.03
"""Stop early when the 95% interval of the median is within 3% of it on either side."""


def profile(
    store: ArtifactStore,
    variants: Sequence[Variant],
    *,
    threads: int = 1,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[Profile]:
    """Profile each variant in its runtime; one subprocess each, one at a time.

    Raises InferenceFailed with the subprocess' last words if one dies.
    """
    profiles: list[Profile] = []
    for variant in variants:
        config = runtime_config_of(variant, threads=threads)
        on_progress(f"{variant.name} on {config.name}")
        job = {
            "store": str(store.root),
            "variant": variant.id,
            "runtime": config.model_dump(),
            "batch_sizes": list(batch_sizes),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tune_spaces.profiler", json.dumps(job)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise InferenceFailed(
                f"profiling {variant.name} in a process of its own ended with code {done.returncode}: "
                f"{done.stderr.strip().splitlines()[-1:] or 'no message'}"
            )
        profiles += [Profile.model_validate(row) for row in json.loads(done.stdout.splitlines()[-1])]
    return profiles


def runtime_config_of(variant: Variant, *, threads: int = 1) -> RuntimeConfig:
    """The runtime that executes this variant's format."""
    return RuntimeConfig(name="torch" if variant.format == "torch_export" else "onnxruntime", threads=threads)


def _median_interval(sample: NDArray[np.float64]) -> tuple[float, float]:
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
            low, high = _median_interval(sample)
            middle = float(np.median(sample))
            if high - middle < _NARROW * middle and middle - low < _NARROW * middle:
                break
    return np.asarray(took)


def _profile_here(job: dict[str, Any]) -> list[dict[str, Any]]:
    store = ArtifactStore(Path(job["store"]))
    variant = store.get(job["variant"])
    config = RuntimeConfig.model_validate(job["runtime"])
    process = psutil.Process()
    before = process.memory_info().rss
    runtime = load_runtime(store, variant, config)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for batch_size in job["batch_sizes"]:
        inputs = {
            spec.name: rng.integers(0, 255, (batch_size, *spec.shape[1:])).astype(NUMPY_OF_DATATYPE[spec.datatype])
            for spec in variant.inputs
        }
        took = time_batches(lambda inputs=inputs: runtime.infer(inputs))  # type: ignore[misc]
        middle = float(np.median(took))
        rows.append(
            Profile(
                variant_id=variant.id,
                runtime=config,
                batch_size=batch_size,
                latency_p50_s=middle,
                latency_p99_s=float(np.quantile(took, 0.99)),
                throughput_rps=batch_size / middle,
                memory_bytes=max(0, process.memory_info().rss - before),
                hardware=fingerprint(),
            ).model_dump(mode="json")
        )
    runtime.close()
    return rows


if __name__ == "__main__":
    die_with_parent()
    print(json.dumps(_profile_here(json.loads(sys.argv[1]))))
