"""The classifier whose features measure how alike pictures are: a finished run's, or a small CNN made for it.

    <runs>/features/<data set>-<hash>.safetensors    made once for data and seed, by atomic rename
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs import weights
from train_jobs.datasets import LabelledDataset
from train_jobs.models.cnn import CNN, CNNConfig
from train_jobs.models.layers import mean_and_std
from train_jobs.parallel.workers import Workers
from train_jobs.transfer import finished_run

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig

_EPOCHS, _BATCH, _LR, _MOST = 2, 128, 4e-3, 30_000
_RECIPE = f"cnn width 0.5, {_EPOCHS} epochs of {_MOST} pictures in batches of {_BATCH}, one cycle to {_LR}"
"""Part of the hash: another recipe makes another file."""


def classifier_of_run(name: str, dataset: LabelledDataset, runs_dir: Path | None) -> nn.Module:
    """The model of a finished run. Raises ConfigError if there is none, or it is no classifier of such pictures."""
    run = finished_run(name, runs_dir)
    wanted = list(dataset.x_train.shape[1:])
    if not hasattr(run.model, "penultimate") or run.config.task.kind != "classify" or run.shapes["inputs"] != wanted:
        raise ConfigError(
            f"task.features={name!r} is a {run.config.model.kind} of {run.shapes['inputs']}; take a classifier of "
            f"pictures {wanted} (model.kind=cnn), or leave it empty to have one made"
        )
    return run.model.eval()


def own_classifier(config: TrainConfig, dataset: LabelledDataset, runs_dir: Path | None) -> CNN:
    """A small CNN trained on the data set, from the cache if it was made before; the same one on all workers."""
    with torch.random.fork_rng(devices=[]):  # whoever makes it, and whoever does not, draws the same numbers next
        torch.manual_seed(config.seed)
        model = CNNConfig(width=0.5).build(dataset.x_train.shape[1:], (len(dataset.labels),))
        workers = Workers.of_this_process()
        if workers.rank == 0:
            path = _path(config, dataset, runs_dir)
            kept = _read(path)
            if kept is not None:
                model.load_state_dict(kept)
            else:
                _fit(model, dataset, config)
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    weights.save(model, path)
    if workers.size > 1:
        _share(model, workers)
    return model.eval()


def _path(config: TrainConfig, dataset: LabelledDataset, runs_dir: Path | None) -> Path | None:
    if runs_dir is None:
        return None
    told = f"{dataset.name} {dataset.test_sha256} {len(dataset.y_train)} {config.seed} {_RECIPE}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", dataset.name).strip("-")[-40:]
    return runs_dir / "features" / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.safetensors"


def _read(path: Path | None) -> dict[str, Tensor] | None:
    if path is None or not path.exists():
        return None
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None  # cut short by a full disk, say: it is made anew


def _fit(model: CNN, dataset: LabelledDataset, config: TrainConfig) -> None:
    """A plain loop of one process: the workers' own loop is what waits for this."""
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    chosen = np.random.default_rng(config.seed).permutation(len(dataset.y_train))[:_MOST]
    x, y = (torch.from_numpy(part[chosen]).to(device) for part in (dataset.x_train, dataset.y_train))
    model.preprocess.normalise(*mean_and_std(torch.from_numpy(dataset.x_train)))
    model.to(device).to(memory_format=torch.channels_last).train()
    steps = _EPOCHS * -(-len(x) // _BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_LR, total_steps=steps + 1)
    for _ in range(_EPOCHS):
        for index in torch.split(torch.randperm(len(x)), _BATCH):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x[index.to(device)]), y[index.to(device)]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.to("cpu").to(memory_format=torch.contiguous_format)


def _share(model: nn.Module, workers: Workers) -> None:
    """Rank 0's weights for all: the others add nothing to the sum, and float32 comes through float64 unchanged."""
    state = model.state_dict()
    flat = torch.cat([tensor.flatten().to(torch.float64) for tensor in state.values()])
    flat = workers.total(flat if workers.rank == 0 else torch.zeros_like(flat))
    parts = torch.split(flat, [tensor.numel() for tensor in state.values()])
    for tensor, part in zip(state.values(), parts, strict=True):
        tensor.copy_(part.reshape(tensor.shape))
