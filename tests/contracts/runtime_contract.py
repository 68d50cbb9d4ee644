"""What every Runtime must do. A runtime's test class inherits `RuntimeContract` and says how it exports a module.

Small modules stand for what can go wrong: one whose executor fails on some values, one that returns its input, one that
returns its own constant. The model is the one that Sluice trains, with random weights, on real pictures.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, ChecksumMismatch, ConfigError, InferenceFailed, InvalidRequest
from cluster.runtimes import Runtime, RuntimeConfig, load_runtime
from cluster.runtimes.base import RuntimeName, Tensors
from cluster.runtimes.streams import StreamedRuntime
from cluster.variants import TensorSpec, Variant
from train_jobs import datasets
from train_jobs.export import INPUT, output_spec
from train_jobs.models import CNN

ROWS = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
SUMS = TensorSpec(name="y", datatype="FP32", shape=(-1, 4))
PLACES = TensorSpec(name="x", datatype="INT64", shape=(-1,))


class Embedding(nn.Module):
    """Fails in the executor for a place that the table of ten lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(40.0).reshape(10, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x]


class Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Constant(nn.Module):
    """Returns one row of its own, whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("row", torch.arange(4.0).reshape(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("row").expand(x.shape[0], 4)


class Doubling(nn.Module):
    """Writes to its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2.0)


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    """64 real test pictures: Fashion-MNIST where the data is, else scikit-learn's digits."""
    name = "fashion-mnist" if os.environ.get("SLUICE_DATA_DIR") else "digits"
    return np.ascontiguousarray(datasets.load(name).x_test[:64])


@pytest.fixture(scope="session")
def model() -> nn.Module:
    torch.manual_seed(7)
    return CNN().eval()


@pytest.fixture(scope="session")
def eager(model: nn.Module, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model(torch.from_numpy(pictures)).numpy().copy()


def lanes_of(runtime: Runtime) -> list[Any]:
    """The loaded copies inside: as many as it has streams, each of its own class."""
    lanes = list(runtime._lanes) if isinstance(runtime, StreamedRuntime) else [runtime]
    assert len(lanes) == runtime.config.streams
    return lanes


class RuntimeContract:
    """Inherit, set the facts, and give the two exporters."""

    runtime: ClassVar[RuntimeName]
    format: ClassVar[str]
    file: ClassVar[str]
    streams: ClassVar[int] = 1

    def export_model(self, model: nn.Module) -> bytes:
        """The trained model's graph, as train_jobs makes it."""
        raise NotImplementedError

    def export_module(self, module: nn.Module, example: torch.Tensor) -> bytes:
        """Any module from `x` to `y`, its first dimension free."""
        raise NotImplementedError

    def threads_of(self, runtime: Runtime) -> set[int]:
        """How many threads each lane's executor itself says it uses, asked in the thread that has just inferred."""
        raise NotImplementedError

    def config(self, **fields: int) -> RuntimeConfig:
        return RuntimeConfig(name=self.runtime, streams=self.streams, **fields)

    def failing(self, store: ArtifactStore) -> tuple[Runtime, Tensors, Tensors, NDArray[np.generic]]:
        """A runtime, inputs on which its executor fails, others on which it does not, and the right answer to those."""
        runtime = self.loaded_module(store, Embedding(), PLACES)
        bad, good = np.array([1, 99], dtype=np.int64), np.array([0, 9], dtype=np.int64)
        return runtime, {"x": bad}, {"x": good}, np.array([[0, 1, 2, 3], [36, 37, 38, 39]])

    # Fixtures

    @pytest.fixture(scope="class")
    def store(self, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
        return ArtifactStore(tmp_path_factory.mktemp("store"))

    @pytest.fixture(scope="class")
    def variant(self, store: ArtifactStore, model: nn.Module) -> Variant:
        return self.stored(store, self.export_model(model), INPUT, output_spec(10))

    @pytest.fixture
    def loaded(self, store: ArtifactStore, variant: Variant) -> Iterator[Runtime]:
        runtime = load_runtime(store, variant, self.config())
        yield runtime
        runtime.close()

    def stored(self, store: ArtifactStore, graph: bytes, *specs: TensorSpec) -> Variant:
        variant = Variant(
            name=f"contract/{self.runtime}", family="cnn", format=self.format, inputs=specs[:1],  # type: ignore[arg-type]
            outputs=specs[1:],
        )  # fmt: skip
        return store.put(variant, {self.file: graph})

    def loaded_module(self, store: ArtifactStore, module: nn.Module, spec: TensorSpec = ROWS) -> Runtime:
        example = torch.ones(2, 4) if spec is ROWS else torch.ones(2, dtype=torch.int64)
        variant = self.stored(store, self.export_module(module, example), spec, SUMS)
        return load_runtime(store, variant, self.config())

    # Answers

    def test_agrees_with_the_eager_model(
        self, loaded: Runtime, pictures: NDArray[np.uint8], eager: NDArray[np.float32]
    ) -> None:
        logits = loaded.infer({"image": pictures})["logits"]
        assert logits.shape == (64, 10)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, eager, atol=1e-4)

    def test_a_batch_of_any_size_gives_each_picture_the_same_answer(
        self, loaded: Runtime, pictures: NDArray[np.uint8]
    ) -> None:
        alone = np.concatenate([loaded.infer({"image": picture[None]})["logits"] for picture in pictures])
        for size in (1, 2, 3, 7, 16, 33, 64):
            together = loaded.infer({"image": pictures[:size]})["logits"]
            np.testing.assert_allclose(together, alone[:size], atol=1e-4)

    def test_takes_views_and_read_only_arrays(
        self, loaded: Runtime, pictures: NDArray[np.uint8], eager: NDArray[np.float32]
    ) -> None:
        """What the codec hands over lies in the request's body; what a client slices has gaps."""
        body = np.frombuffer(pictures.tobytes(), dtype=np.uint8).reshape(pictures.shape)
        assert not body.flags.writeable
        np.testing.assert_allclose(loaded.infer({"image": body})["logits"], eager, atol=1e-4)
        np.testing.assert_allclose(loaded.infer({"image": pictures[::-2]})["logits"], eager[::-2], atol=1e-4)

    def test_says_who_it_is(self, loaded: Runtime) -> None:
        assert loaded.name == self.runtime
        assert loaded.config == self.config()

    # Ownership

    def test_answers_belong_to_the_caller(self, loaded: Runtime, pictures: NDArray[np.uint8]) -> None:
        first = loaded.infer({"image": pictures[:4]})["logits"]
        kept = first.copy()
        second = loaded.infer({"image": pictures[4:8]})["logits"]
        np.testing.assert_array_equal(first, kept)
        assert not np.shares_memory(first, second)
        second[:] = np.nan
        np.testing.assert_allclose(loaded.infer({"image": pictures[:4]})["logits"], kept, atol=1e-5)
        loaded.close()
        np.testing.assert_array_equal(first, kept)

    @pytest.mark.parametrize("module", [Identity(), Constant(), Doubling()], ids=lambda module: type(module).__name__)
    def test_neither_input_nor_constants_leak_into_answers(self, store: ArtifactStore, module: nn.Module) -> None:
        runtime = self.loaded_module(store, module)
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        first = runtime.infer({"x": x})["y"]
        kept = first.copy()
        np.testing.assert_array_equal(x, np.arange(8, dtype=np.float32).reshape(2, 4))
        assert not np.shares_memory(first, x)
        first[:] = -1.0
        np.testing.assert_array_equal(x, np.arange(8, dtype=np.float32).reshape(2, 4))
        np.testing.assert_array_equal(runtime.infer({"x": x})["y"], kept)

    # Mistakes

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda x: {"picture": x}, "'image'"),
            (lambda x: {}, "missing"),
            (lambda x: {"image": x, "mask": x}, "'mask'"),
            (lambda x: {"image": x.astype(np.float32)}, "FP32"),
            (lambda x: {"image": x.astype(np.int8)}, "INT8"),
            (lambda x: {"image": x[:, :, :27]}, "27"),
            (lambda x: {"image": x[0]}, r"\[1, 28, 28\]"),
            (lambda x: {"image": x[None]}, r"\[1, 64, 1, 28, 28\]"),
            (lambda x: {"image": x[:0]}, r"\[0, 1, 28, 28\]"),
        ],
        ids=["name", "missing", "extra", "float", "int8", "shape", "rank-3", "rank-5", "empty"],
    )
    def test_a_wrong_request_is_the_callers_mistake_and_leaves_it_usable(
        self, loaded: Runtime, pictures: NDArray[np.uint8], eager: NDArray[np.float32],
        change: Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]], said: str,
    ) -> None:  # fmt: skip
        with pytest.raises(InvalidRequest, match=said):
            loaded.infer(change(pictures))
        np.testing.assert_allclose(loaded.infer({"image": pictures[:2]})["logits"], eager[:2], atol=1e-4)

    def test_a_failing_executor_is_our_error_and_leaves_it_usable(self, store: ArtifactStore) -> None:
        runtime, bad, good, answer = self.failing(store)
        for _ in range(3):
            with pytest.raises(InferenceFailed, match="failed"):
                runtime.infer(bad)
            np.testing.assert_array_equal(runtime.infer(good)["y"], answer)

    def test_close_twice_then_use(self, loaded: Runtime, pictures: NDArray[np.uint8]) -> None:
        loaded.close()
        loaded.close()
        with pytest.raises(InferenceFailed, match="closed"):
            loaded.infer({"image": pictures})

    # Loading

    def test_changed_bytes_are_refused(self, tmp_path: Path, variant: Variant, store: ArtifactStore) -> None:
        data = store.read(variant, self.file)
        copy = ArtifactStore(tmp_path)
        copy.put(variant, {self.file: data})
        blob = next(path for path in tmp_path.glob("objects/*/*") if path.name == variant.files[0].sha256)
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ChecksumMismatch, match="make the variant again"):
            load_runtime(copy, variant, self.config())

    def test_another_format_is_refused(self, store: ArtifactStore, variant: Variant) -> None:
        other: RuntimeName = "torch" if self.format == "onnx" else "openvino"
        with pytest.raises(ConfigError, match=rf"use \[.*'{self.runtime}'.*\]"):
            load_runtime(store, variant, RuntimeConfig(name=other))

    @pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08" * 100])
    def test_bytes_that_are_no_graph_are_refused(self, store: ArtifactStore, content: bytes) -> None:
        variant = self.stored(store, content, ROWS, SUMS)
        with pytest.raises(ArtifactError):
            load_runtime(store, variant, self.config())

    def test_a_manifest_of_another_graph_is_refused(self, store: ArtifactStore) -> None:
        graph = self.export_module(Identity(), torch.ones(2, 4))
        more = SUMS.model_copy(update={"name": "z"})
        with pytest.raises(ArtifactError, match="make it again"):
            load_runtime(store, self.stored(store, graph, ROWS, SUMS, more), self.config())

    def test_a_variant_without_a_model_file_is_refused(self, store: ArtifactStore, variant: Variant) -> None:
        empty = store.put(variant, {"notes.txt": b"nothing here"})
        with pytest.raises(ArtifactError, match=r"model\.\*"):
            load_runtime(store, empty, self.config())

    # Threads

    def test_runs_on_another_thread(
        self, loaded: Runtime, pictures: NDArray[np.uint8], eager: NDArray[np.float32]
    ) -> None:
        answers: list[NDArray[Any]] = []
        thread = threading.Thread(target=lambda: answers.append(loaded.infer({"image": pictures})["logits"]))
        thread.start()
        thread.join()
        np.testing.assert_allclose(answers[0], eager, atol=1e-4)

    def test_the_number_of_threads_is_the_configs(
        self, store: ArtifactStore, variant: Variant, pictures: NDArray[np.uint8]
    ) -> None:
        """Also for two runtimes in turn on a thread that has computed before: a replica changes its variant so."""
        seen: list[set[int]] = []

        def infer_in_turn() -> None:
            for threads in (1, 2, 1):
                runtime = load_runtime(store, variant, self.config(threads=threads))
                runtime.infer({"image": pictures})
                seen.append(self.threads_of(runtime))
                runtime.close()

        first = load_runtime(store, variant, self.config(threads=1))
        second = load_runtime(store, variant, self.config(threads=2))

        def infer_with_both() -> None:
            for runtime in (first, second, first):
                runtime.infer({"image": pictures})
                seen.append(self.threads_of(runtime))

        for work in (infer_in_turn, infer_with_both):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        assert seen == [{1}, {2}, {1}, {1}, {2}, {1}]
