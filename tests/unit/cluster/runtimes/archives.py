"""A small torch archive, and how to tamper with one."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.errors import ArtifactError
from cluster.runtimes.torch_archive import load_pickle_free

GRAPH = "archive/models/model.json"
SAMPLES = "archive/data/sample_inputs/model.pt"
WEIGHTS = "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"
Entries = dict[str, bytes]


class Model(nn.Module):
    """A weight, a constant and some arithmetic on the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.shift = torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.linear(x) + self.shift).reshape(x.shape[0] * 2, 2)


EXAMPLE = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)


def export(model: nn.Module, *inputs: torch.Tensor) -> torch.export.ExportedProgram:
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs)
    return torch.export.export(model.eval(), inputs, dynamic_shapes=shapes)


def unpacked(data: bytes) -> Entries:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(entries: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def tampered(data: bytes, name: str, change: Callable[[dict[str, Any]], object]) -> Entries:
    """The archive's entries with the JSON of one of them changed in place."""
    entries = unpacked(data)
    content = json.loads(entries[name])
    change(content)
    return entries | {name: json.dumps(content).encode()}


class Trap:
    """Unpickling an instance creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def trap_pickle(path: Path) -> bytes:
    return pickle.dumps(Trap(path))


def trap_torch(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Trap(path), buffer)
    return buffer.getvalue()


Attack = Callable[[bytes, Path], Entries]
"""(archive of ours, file that must never appear) -> the entries of an archive that would create it."""


def run_as_torch_would(data: bytes) -> None:
    """torch's own way from the bytes to an answer; how it ends does not matter."""
    try:
        torch.export.load(io.BytesIO(data)).module()(EXAMPLE)
    except Exception as error:
        print(f"after the attack: {error!r}")


def refused_though_torch_falls_for_it(attack: Attack, ours: bytes, folder: Path) -> None:
    """The attack works on torch's own reader, and ours refuses it before it has done anything."""
    data = packed(attack(ours, folder / "from-torch"))
    run_as_torch_would(data)
    assert (folder / "from-torch").exists(), "the attack does not work on torch, so refusing it proves nothing"

    data = packed(attack(ours, folder / "from-ours"))
    with pytest.raises(ArtifactError, match="torch archive"):
        load_pickle_free(data)
    assert not (folder / "from-ours").exists()
