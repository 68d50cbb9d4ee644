"""The user's own model -> TrainedModel, from which compression makes variants.

    --model model.onnx            a graph of one input and one output (graph.py)
    --model my_pkg.module:name    a function without arguments that returns a trained nn.Module, or the module itself

Either takes a batch of the data set's samples as they are and gives a score for each class. A few samples are run
through it here, so that what cannot work is said before anything is compressed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cluster.errors import ConfigError
from train_jobs.compression.trained import TrainedModel
from train_jobs.datasets import LabelledDataset
from train_jobs.graph import read_graph, spec_of, way_to
from train_jobs.references import Resolved, is_reference, resolve

Array = NDArray[np.generic]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ROWS = 3
_INSIDE = "samples as the data set gives them; what else there is lies inside the graph"


def load_model(spec: str, dataset: LabelledDataset, *, name: str | None = None) -> TrainedModel:
    """The model that `spec` names, for the samples of `dataset`; its variants are called "<name>/int8".

    Without `name`, the file's or the module's. Raises ConfigError naming what does not fit and the way out, or the
    user's own error with its line.
    """
    path = Path(spec).expanduser()
    if path.suffix == ".onnx":
        return _of_file(path, dataset, _named(name, path.stem))
    if path.exists():
        raise ConfigError(
            f"model={spec!r}: a {path.suffix or 'folder'} holds no graph that can be read without running it; export "
            "ONNX, or pass pkg.module:function that returns the loaded nn.Module"
        )
    if not is_reference(spec):
        raise ConfigError(f"model={spec!r} is neither an .onnx file nor pkg.module:function; pass one of them")
    found = load_module(spec)
    return _of_module(found, dataset, _named(name, found.name))


def load_module(spec: str) -> Resolved:
    """`pkg.module:name` -> its `value` is the nn.Module, in eval mode on the CPU. Raises ConfigError for anything else.
    """
    found = resolve(spec, as_it_is=(nn.Module,))
    module = getattr(found.value, "_orig_mod", found.value)  # what torch.compile wraps
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(f"{spec} gives {type(module).__name__}; it must give a trained torch.nn.Module")
    return replace(found, value=module.cpu().eval())


def _named(given: str | None, otherwise: str) -> str:
    """Raises ConfigError for a name that no variant can have."""
    if given is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", otherwise).lstrip("._-")[:100] or "model"
    if not _NAME.fullmatch(given):
        raise ConfigError(f"name={given!r} names no variants; use up to 100 letters, digits, dots, dashes, underscores")
    return given


def _of_file(path: Path, dataset: LabelledDataset, name: str) -> TrainedModel:
    if not path.is_file():
        raise ConfigError(f"model={str(path)!r}: there is no such file")
    graph = read_graph(path, dataset.x_test, len(dataset.labels))
    return TrainedModel(
        name=name, family="onnx", inputs=graph.inputs, outputs=graph.outputs, onnx=graph.data, preprocessing=_INSIDE,
        provenance={"model": {"spec": str(path.resolve())}},
    )  # fmt: skip


def _of_module(found: Resolved, dataset: LabelledDataset, name: str) -> TrainedModel:
    module: nn.Module = found.value
    rows = np.resize(dataset.x_test, (_ROWS, *dataset.x_test.shape[1:]))
    scores = _scores(module, rows, found.spec)
    if scores.shape != (_ROWS, len(dataset.labels)):
        raise ConfigError(
            f"{found.spec} answers {list(scores.shape)} for {_ROWS} samples; it must give a score for each of the "
            f"{len(dataset.labels)} classes of {dataset.name}: {[_ROWS, len(dataset.labels)]}"
        )
    if not np.isfinite(scores).all():
        raise ConfigError(f"{found.spec} answers NaN or infinity on real samples; train it, or load its weights")
    alone = np.concatenate([_scores(module, row[None], found.spec) for row in rows])
    if not np.allclose(alone, scores, rtol=1e-3, atol=1e-4 * float(np.abs(scores).max())):
        raise ConfigError(
            f"{found.spec} answers a sample differently when others are in its batch; a server batches as it likes, so "
            "each answer must depend on its own sample alone"
        )
    return TrainedModel(
        name=name, family=type(module).__name__, inputs=spec_of("input", rows), outputs=spec_of("logits", scores),
        module=module, preprocessing=_INSIDE, provenance={"model": {"spec": found.spec}},
    )  # fmt: skip


def _scores(module: nn.Module, rows: Array, spec: str) -> NDArray[np.float32]:
    """The module's answer, float32. Raises ConfigError with the module's own error."""
    try:
        with torch.inference_mode():
            answer: Any = module(torch.from_numpy(rows.copy()))
    except Exception as error:
        weights = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        differ = str(weights).removeprefix("torch.") != rows.dtype.name
        hint = f"; the samples are {rows.dtype}: {way_to(rows.dtype, np.dtype(np.float32))}" if differ else ""
        told = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{spec} fails on samples {rows.dtype} {list(rows.shape)}: {type(error).__name__}: {told}{hint}"
        ) from error
    if not isinstance(answer, torch.Tensor) or answer.dtype != torch.float32:
        kind = f"a tensor of {answer.dtype}" if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ConfigError(f"{spec} answers {kind}; it must answer one float32 tensor, a score for each class")
    scores: NDArray[np.float32] = answer.numpy()
    return scores
