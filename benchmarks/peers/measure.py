"""What our own runtimes do not load -> answers and times, by the same protocol: python measure.py JOB (JSON).

    {"model": .../model.xml or .pt2, "pictures": .../test.npz, "core": 0, "batch_sizes": [1, 4], "answers": true}

One core, one thread, a process for each; the timing is tune_spaces/profiler.py's, word for word (a test holds them
together), because it runs in the environment of whoever made the model. A .pt2 is compiled by torch for each size of
batch, before anything is timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SECONDS_PER_BATCH_SIZE = 0.6
_NARROW = 0.03
Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


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


def load_openvino(path: str) -> Infer:
    """As cluster/runtimes/openvino_runtime.py compiles an int8 variant."""
    import openvino as ov
    from openvino import properties
    from openvino.properties import hint

    model = ov.Core().compile_model(path, "CPU", {
        hint.inference_precision(): "f32", properties.inference_num_threads(): 1, properties.num_streams(): 1,
        hint.enable_cpu_pinning(): False,
    })  # fmt: skip
    request = model.create_infer_request()
    return lambda x: np.array(request.infer([x])[0])


def load_torch(path: str) -> Infer:
    """As torchao's documentation serves its static int8: torch.compile with frozen weights."""
    import torch
    import torch._inductor.config as inductor
    import torchao  # type: ignore[import-not-found]  # noqa: F401 - registers its operators

    torch.set_num_threads(1)
    inductor.freezing = True
    module: Any = torch.export.load(path).module()
    module.validate_inputs = False
    compiled: Any = torch.compile(module, dynamic=False)

    def infer(x: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.array(compiled(torch.from_numpy(x)).numpy())

    return infer


def main(job: dict[str, Any]) -> dict[str, Any]:
    """See the module's first lines."""
    os.sched_setaffinity(0, [job["core"]])
    infer = (load_torch if job["model"].endswith(".pt2") else load_openvino)(job["model"])
    with np.load(job["pictures"]) as data:
        x = data["x"]
    found: dict[str, Any] = {"profiles": []}
    if job.get("answers"):
        size = max(job["batch_sizes"])  # a size that is compiled anyway
        whole = np.concatenate([x, np.zeros((-len(x) % size, *x.shape[1:]), x.dtype)])
        pieces = [infer(whole[i : i + size]).argmax(1) for i in range(0, len(whole), size)]
        found["answers"] = np.concatenate(pieces)[: len(x)].tolist()
    rng = np.random.default_rng(0)
    for size in job["batch_sizes"]:
        batch = rng.integers(0, 255, (size, *x.shape[1:])).astype(np.uint8)
        middle = float(np.median(time_batches(lambda batch=batch: infer(batch))))  # type: ignore[misc]
        found["profiles"].append({"batch_size": size, "latency_s": middle, "throughput_rps": size / middle})
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
