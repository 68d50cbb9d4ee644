"""Training state <-> a folder, by torch.distributed.checkpoint: all workers write their share, in the background.

    <folder>/step-000000120/.metadata     there once the checkpoint is whole: torch renames it into place last
                            __0_0.distcp  rank 0's share of the tensors

State is tensors and plain numbers. The numbers travel as one tensor of JSON, so reading a checkpoint unpickles nothing
but torch's own table of contents, and of that only torch's own classes. Any number of workers can go on with what
another number wrote.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import async_save

from cluster.errors import TrainingFailed

# Said from a thread of torch's own, about what we ask for: a run of one process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
_PREFIX, _DONE, _REST = "step-", ".metadata", "rest"
State = dict[str, Any]


class Writer:
    """Writes the checkpoints of one run, one at a time, while training goes on; keeps the last `keep`.

    All workers of torch's process group make one and call it alike. A kill at any point leaves the checkpoint before.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep
        # Its own group: what it sends in the background must not meet the gradients.
        self._group: Any = dist.new_group(backend="gloo") if dist.is_available() and dist.is_initialized() else None
        self._leader = self._group is None or dist.get_rank() == 0
        self._pending: Future[Any] | None = None
        self._target = folder

    def write(self, state: State, step: int) -> None:
        """Copy `state` and write it in the background, once the one before is whole.

        Raises TrainingFailed if that one could not be written.
        """
        self.wait()
        self._target = self._folder / f"{_PREFIX}{step:09d}"
        try:
            # Left by a kill halfway. It is removed before anybody writes: all workers are past wait().
            if self._leader and self._target.exists() and not (self._target / _DONE).exists():
                shutil.rmtree(self._target)
            if self._group is not None:
                dist.barrier(self._group)
            tensors = _packed(state)
            if not self._leader:
                del tensors[_REST]  # holds clocks, which differ
            self._pending = async_save(  # type: ignore[assignment]
                tensors, checkpoint_id=self._target, process_group=self._group, no_dist=self._group is None,
                storage_writer=FileSystemWriter(self._target, single_file_per_rank=True, overwrite=True),
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Until the last one is whole. Raises TrainingFailed if it could not be written; the one before is intact."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except (Exception, CheckpointException) as error:  # theirs is no Exception
            if self._leader:
                shutil.rmtree(self._target, ignore_errors=True)
            raise self._failed(error) from error
        if self._leader:
            for old in _whole(self._folder)[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)

    def _failed(self, error: BaseException) -> TrainingFailed:
        told = " ".join(str(error).split())[-300:]
        return TrainingFailed(
            f"cannot write {self._target} ({told}); make room or choose another folder; the checkpoint before it is "
            "intact"
        )


def save(state: State, folder: Path, *, step: int) -> None:
    """Write one checkpoint and wait for it."""
    writer = Writer(folder)
    writer.write(state, step)
    writer.wait()


def load(folder: Path) -> State | None:
    """The newest whole checkpoint, or None if there is none. Raises TrainingFailed if it is not one of ours."""
    whole = _whole(folder)
    if not whole:
        return None
    newest = whole[-1]
    try:
        reader = _Reader(newest)
        entries = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Tensor] = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)
        }  # fmt: skip
        load_tensors(tensors, storage_reader=_Reader(newest), no_dist=True)
        state = _unpacked(tensors)
    except (Exception, CheckpointException) as error:
        # Only its type: torch's own text advises to load the file without weights_only, which would run what is in it.
        raise TrainingFailed(
            f"{newest} is no checkpoint ({type(error).__name__}); delete it to go on from the one before"
        ) from error
    return state


def _whole(folder: Path) -> list[Path]:
    """The folders of whole checkpoints, the newest last."""
    return sorted(done.parent for done in folder.glob(f"{_PREFIX}*/{_DONE}"))


class _Unpickler(pickle.Unpickler):
    """Knows the plain records of torch's table of contents, and no function that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        # No dots: "filesystem" + "os.system" would walk from torch's module into any that it imports.
        if "." not in name:
            dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if dtype or (module, name) in _TABLE_NAMES:
                return super().find_class(module, name)
            found = super().find_class(module, name) if module in _TABLE_MODULES else None
            record = isinstance(found, type) and (is_dataclass(found) or issubclass(found, Enum))
            if record and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


_TABLE_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_TABLE_NAMES = {
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("collections", "OrderedDict"),
}  # fmt: skip


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / _DONE).open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("the table of contents is another object")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _packed(state: State) -> dict[str, Tensor]:
    """Tensors by a number, and all else as JSON in a tensor of bytes."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"t{len(tensors):05d}"
            # A scalar has no shape to be cut along; contiguous, because channels last is not what is loaded into.
            tensors[name] = value.detach().reshape(value.shape or (1,)).contiguous()
            return {"$tensor": name, "scalar": value.ndim == 0}
        if isinstance(value, Mapping):
            return {"$items": [[key, plain(item)] for key, item in value.items()]}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    text = json.dumps(plain(state)).encode()
    return tensors | {_REST: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def _unpacked(tensors: Mapping[str, Tensor]) -> State:
    def rich(value: Any) -> Any:
        if isinstance(value, dict) and "$tensor" in value:
            tensor = tensors[value["$tensor"]]
            return tensor.reshape(()) if value["scalar"] else tensor
        if isinstance(value, dict):
            return {key: rich(item) for key, item in value["$items"]}
        return [rich(item) for item in value] if isinstance(value, list) else value

    state = rich(json.loads(bytes(tensors[_REST].numpy())))
    if not isinstance(state, dict):
        raise TypeError("no state")
    return state
