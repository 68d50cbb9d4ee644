"""What compiling needs, where it keeps what it made, and what it must not do to a process; the contract of all runtimes
(tests/contracts/test_torch_compiled.py) says that the answers are right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor import config as inductor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InferenceFailed, RuntimeUnavailable
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.runtimes.torch_archive import save_pickle_free
from cluster.variants import TensorSpec, Variant
from tests.unit.cluster.runtimes.archives import export

COMPILED = RuntimeConfig(name="torch", compile=True)
WIDE = 4096


class Lookup(nn.Module):
    """Enough arithmetic on each place for Inductor to give it several threads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1.0, 1.0, 10 * WIDE).reshape(10, WIDE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x].sin().exp()


class Waves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin().exp()


class Viewing(nn.Module):
    """`view` wants rows that lie together."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x).view(x.shape[0], -1)


@pytest.fixture(autouse=True)
def _threads_and_cache_restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # what torch itself leaves behind
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def stored(store: ArtifactStore, module: nn.Module, x: torch.Tensor, given: TensorSpec, width: int) -> Variant:
    answers = TensorSpec(name="y", datatype="FP32", shape=(-1, width))
    variant = Variant(name="v", family="f", format="torch_export", inputs=(given,), outputs=(answers,))
    return store.put(variant, {"model.pt2": save_pickle_free(export(module, x))})


def lookup(store: ArtifactStore) -> Variant:
    places = TensorSpec(name="x", datatype="INT64", shape=(-1,))
    return stored(store, Lookup(), torch.zeros(3, dtype=torch.int64), places, WIDE)


def test_a_place_out_of_range_on_several_threads_fails_the_batch_and_not_the_process(
    store: ArtifactStore, tmp_path: Path
) -> None:
    """Inductor's own kernel for threads throws on one of them, which no handler is above."""
    runtime = load_runtime(store, lookup(store), COMPILED.model_copy(update={"threads": 2}))
    good, bad = np.arange(64) % 10, np.full(64, 99)
    expected = np.exp(np.sin(np.linspace(-1.0, 1.0, 10 * WIDE, dtype=np.float32).reshape(10, WIDE)))[good]
    with pytest.raises(InferenceFailed, match="out of bounds"):
        runtime.infer({"x": bad})
    np.testing.assert_allclose(runtime.infer({"x": good})["y"], expected, atol=1e-5)

    folder = tmp_path / "cache/sluice/inductor"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder), "not the one in /tmp that others can foresee"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.rglob("*.so"))


def test_several_threads_compute_what_one_does_in_a_cache_of_the_user_s_choice(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    rows = TensorSpec(name="x", datatype="FP32", shape=(-1, WIDE))
    variant = stored(store, Waves(), torch.zeros(3, WIDE), rows, WIDE)
    runtime = load_runtime(store, variant, COMPILED.model_copy(update={"threads": 2}))
    x = np.linspace(-3.0, 3.0, 40 * WIDE, dtype=np.float32).reshape(40, WIDE)
    np.testing.assert_allclose(runtime.infer({"x": x})["y"], np.exp(np.sin(x)), atol=1e-5)

    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")
    assert any("omp parallel num_threads(2)" in path.read_text() for path in (tmp_path / "mine").rglob("*.cpp"))


def test_without_a_compiler_it_says_what_to_install(store: ArtifactStore) -> None:
    variant = lookup(store)
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(RuntimeUnavailable, match=r"'no-such-compiler' does not run; install one .*compile=false"),
    ):
        load_runtime(store, variant, COMPILED)
    load_runtime(store, variant, RuntimeConfig(name="torch")).close()


def test_a_compiler_that_fails_is_quoted(store: ArtifactStore, tmp_path: Path) -> None:
    broken = tmp_path / "broken-g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp:1: error: out of patience" >&2\nexit 1\n')
    broken.chmod(0o755)
    with (
        inductor.patch({"cpp.cxx": (None, str(broken))}),
        pytest.raises(RuntimeUnavailable, match=r"error: out of patience.*compile=false"),
    ):
        load_runtime(store, lookup(store), COMPILED)


def test_a_graph_that_wants_another_order_of_channels_is_refused(store: ArtifactStore) -> None:
    pictures = TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 6, 6))
    variant = stored(store, Viewing(), torch.zeros(2, 3, 6, 6), pictures, 64)
    with pytest.raises(ConfigError, match=r"channels_last=true: this graph does not run .*unset it"):
        load_runtime(store, variant, RuntimeConfig(name="torch", channels_last=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused_with_what_torch_was_built_for(store: ArtifactStore) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"device='cuda': torch .*built .*CUDA.* use device='cpu'"):
        load_runtime(store, lookup(store), RuntimeConfig(name="torch", device="cuda"))
