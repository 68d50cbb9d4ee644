"""The torch runtime keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import nn

from cluster.runtimes import Runtime
from cluster.runtimes.streams import StreamedRuntime
from cluster.runtimes.torch_archive import save_pickle_free
from tests.contracts.runtime_contract import RuntimeContract, eager, model, pictures
from train_jobs.export import to_torch_archive

__all__ = ["eager", "model", "pictures"]  # fixtures


exported_model = cache(to_torch_archive)


@pytest.fixture(autouse=True)
def _thread_count_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestTorch(RuntimeContract):
    runtime = "torch"
    format = "torch_export"
    file = "model.pt2"

    def export_model(self, model: nn.Module) -> bytes:
        return exported_model(model)

    def export_module(self, module: nn.Module, example: torch.Tensor) -> bytes:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        return save_pickle_free(torch.export.export(module.eval(), (example,), dynamic_shapes=shapes))

    def threads_of(self, runtime: Runtime) -> set[int]:
        """torch keeps a count for each thread: this one computed the first lane, the pool's one the second."""
        pools = [runtime._pool] if isinstance(runtime, StreamedRuntime) else []
        assert self.streams <= 2, "with more, a pool's thread may have had no lane"
        return {torch.get_num_threads(), *(pool.submit(torch.get_num_threads).result() for pool in pools)}
