"""The torch runtime keeps the contract with its graph compiled, and with its channels innermost."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from torch._dynamo.utils import counters

from cluster.artifacts import ArtifactStore
from cluster.runtimes import Runtime, RuntimeConfig, load_runtime
from cluster.variants import Variant
from tests.contracts import test_torch
from tests.contracts.runtime_contract import ROWS, SUMS, Identity, eager, model, pictures

__all__ = ["eager", "model", "pictures"]  # fixtures


class TestChannelsLastTorch(test_torch.TestTorch):
    def config(self, **fields: Any) -> RuntimeConfig:
        return RuntimeConfig(name="torch", channels_last=True, **fields)

    def test_weights_and_pictures_have_their_channels_innermost(self, loaded: Runtime) -> None:
        module = loaded._module  # type: ignore[attr-defined]
        weights = [weight for weight in module.parameters() if weight.dim() == 4 and weight.shape[1] > 1]
        assert weights
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        placed = loaded._placed(torch.zeros(2, 3, 4, 4))  # type: ignore[attr-defined]
        assert placed.is_contiguous(memory_format=torch.channels_last)


class TestCompiledTorch(test_torch.TestTorch):
    @pytest.fixture(scope="class", autouse=True)
    def _cache(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
            yield

    def config(self, **fields: Any) -> RuntimeConfig:
        return RuntimeConfig(name="torch", compile=True, **fields)

    @pytest.fixture(scope="class")
    def once(self, store: ArtifactStore, variant: Variant) -> Runtime:
        return load_runtime(store, variant, self.config())

    @pytest.fixture
    def loaded(self, once: Runtime) -> Runtime:
        """A copy, which a test may close: to compile for every test would take minutes."""
        return copy.copy(once)

    def test_no_batch_size_is_compiled_while_it_serves(self, loaded: Runtime, pictures: NDArray[np.uint8]) -> None:
        """And compiled code computes every one of them, on whatever thread."""
        compiled_before = counters["stats"]["unique_graphs"]
        assert compiled_before > 0
        uncompiled: list[int] = []

        def infer_all() -> None:
            for size in (1, 2, 3, 5, 15, 16, 17, 33, 63, 64, 65, 100, 128, 250):
                with torch.profiler.profile() as seen:
                    loaded.infer({"image": np.resize(pictures, (size, 1, 28, 28))})
                if not any("Torch-Compiled Region" in event.name for event in seen.events() or ()):
                    uncompiled.append(size)

        thread = threading.Thread(target=infer_all)
        thread.start()
        thread.join()
        assert uncompiled == []
        assert counters["stats"]["unique_graphs"] == compiled_before

    def test_no_process_of_the_compiler_s_stays(self, loaded: Runtime) -> None:
        commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
        assert not [command for command in commands if "compile_worker" in command or "c++" in command]

    def test_the_number_of_threads_is_the_configs(
        self, store: ArtifactStore, variant: Variant, pictures: NDArray[np.uint8]
    ) -> None:
        """Of two in turn on one thread, of a graph that compiles in no time: the contract's five would take long."""
        small = self.stored(store, self.export_module(Identity(), torch.ones(2, 4)), ROWS, SUMS)
        seen = []
        for threads in (1, 2, 1):
            runtime = load_runtime(store, small, self.config(threads=threads))
            runtime.infer({"x": np.ones((2, 4), np.float32)})
            seen.append(self.threads_of(runtime))
            runtime.close()
        assert seen == [{1}, {2}, {1}]
