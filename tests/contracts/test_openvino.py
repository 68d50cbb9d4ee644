"""OpenVINO keeps the contract."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray
from onnx import helper

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InferenceFailed
from cluster.runtimes import Runtime, load_runtime
from cluster.runtimes.base import Tensors
from cluster.runtimes.openvino_runtime import OpenVinoRuntime
from cluster.variants import Precision, TensorSpec, Variant
from tests.contracts.onnx_graphs import OnnxContract, constant, floats, graph
from tests.contracts.runtime_contract import PLACES, ROWS, SUMS, Embedding, eager, lanes_of, model, pictures
from train_jobs.export import INPUT, output_spec

__all__ = ["eager", "model", "pictures"]  # fixtures


class TestOpenVino(OnnxContract):
    runtime = "openvino"

    def threads_of(self, runtime: Runtime) -> set[int]:
        lanes = lanes_of(runtime)
        assert all(isinstance(lane, OpenVinoRuntime) for lane in lanes)
        return {int(lane._model.get_property("INFERENCE_NUM_THREADS")) for lane in lanes}

    def failing(self, store: ArtifactStore) -> tuple[Runtime, Tensors, Tensors, NDArray[np.generic]]:
        """A place beyond a table is no failure here, so another graph that has one: it takes three rows (in each lane)
        and not two."""
        nodes = [helper.make_node("Add", ["x", "three rows"], ["y"])]
        data = graph(nodes, [floats("x", None, 4)], [floats("y", None, 4)],
                     [constant("three rows", np.zeros((3, 4), np.float32))])  # fmt: skip
        runtime = load_runtime(store, self.stored(store, data, ROWS, SUMS), self.config())
        good = np.arange(12.0 * self.streams, dtype=np.float32).reshape(-1, 4)
        return runtime, {"x": good[: 2 * self.streams]}, {"x": good}, good

    def looked_up(self, store: ArtifactStore, operator: str, *nodes: onnx.NodeProto) -> Runtime:
        """A table of ten rows whose places come from `nodes`, which make "places" of the input x (-1,)."""
        table = constant("table", np.arange(40, dtype=np.float32).reshape(10, 4))
        data = graph(
            [*nodes, helper.make_node(operator, ["table", "places"], ["y"])],
            [helper.make_tensor_value_info("x", onnx.TensorProto.INT64, (None,))], [floats("y", None, 4)],
            [table, constant("first", np.array([[1]])), constant("axes", np.array([1]))],
        )  # fmt: skip
        return load_runtime(store, self.stored(store, data, PLACES, SUMS), self.config())

    @pytest.mark.parametrize("place", [10, 99, -11, 2**31 - 1])
    def test_a_place_beyond_the_table_is_a_row_of_zeros(self, store: ArtifactStore, place: int) -> None:
        """As the module's docstring says: should OpenVINO learn to refuse it, say so there."""
        runtime = self.looked_up(store, "Gather", helper.make_node("Identity", ["x"], ["places"]))
        for _ in range(20):
            inside = runtime.infer({"x": np.array([2, 3])})["y"]
            np.testing.assert_array_equal(inside, [[8, 9, 10, 11], [12, 13, 14, 15]])
            answer = runtime.infer({"x": np.array([1, place])})["y"]
            np.testing.assert_array_equal(answer, [[4, 5, 6, 7], [0, 0, 0, 0]])

    def test_a_lookup_that_does_not_check_its_places_is_refused(self, store: ArtifactStore) -> None:
        """It would answer with what lies in memory beyond the table."""
        with pytest.raises(ConfigError, match=r"GatherND.*does not check them; use runtime onnxruntime"):
            self.loaded_module(store, Embedding(), PLACES)
        hidden = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Unsqueeze", ["square", "axes"],
                  ["places"])]  # fmt: skip
        with pytest.raises(ConfigError, match="GatherND"):
            self.looked_up(store, "GatherND", *hidden)

    def test_a_lookup_whose_places_no_request_names_is_not(self, store: ArtifactStore) -> None:
        nodes = [helper.make_node("Shape", ["x"], ["rows"]), helper.make_node("Mul", ["rows", "first"], ["places"])]
        runtime = self.looked_up(store, "GatherND", *nodes)
        answer = runtime.infer({"x": np.full(self.streams, 99)})["y"]
        np.testing.assert_array_equal(answer, [[4, 5, 6, 7]] * self.streams)

    def test_a_pool_that_may_get_no_rows_is_refused(self, store: ArtifactStore) -> None:
        """Early exits are such graphs: a batch that leaves whole leaves none."""
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[1, 2], keepdims=0),
            helper.make_node("NonZero", ["most"], ["rows_1N"]),
            helper.make_node("Squeeze", ["rows_1N", "first"], ["rows"]),
            helper.make_node("Gather", ["x", "rows"], ["kept"], axis=0),
            helper.make_node("MaxPool", ["kept"], ["y"], kernel_shape=[2]),
        ]
        data = graph(nodes, [floats("x", None, 1, 4)], [floats("y", None, 1, 3)], [constant("first", np.array([0]))])
        specs = [TensorSpec(name=name, datatype="FP32", shape=(-1, 1, n)) for name, n in (("x", 4), ("y", 3))]
        with pytest.raises(ConfigError, match="may leave no row for MaxPool"):
            load_runtime(store, self.stored(store, data, specs[0], specs[1]), self.config())

    @pytest.mark.parametrize("place", [2**31, 2**32 + 1, -(2**31) - 1])
    def test_what_does_not_fit_in_32_bits_is_refused_and_not_cut_off(self, store: ArtifactStore, place: int) -> None:
        runtime = self.looked_up(store, "Gather", helper.make_node("Identity", ["x"], ["places"]))
        with pytest.raises(InferenceFailed, match=f"failed: input 'x' holds .*{place}.* another runtime"):
            runtime.infer({"x": np.array([1, place], dtype=np.int64)})
        np.testing.assert_array_equal(runtime.infer({"x": np.array([1, 0])})["y"], [[4, 5, 6, 7], [0, 1, 2, 3]])

    @pytest.mark.parametrize("precision", ["fp32", "int8", "bf16"])
    def test_the_manifest_says_what_is_computed_in_and_not_the_machine(
        self, store: ArtifactStore, variant: Variant, precision: Precision
    ) -> None:
        can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        computes = "bf16" if precision == "bf16" and "BF16" in can else "f32"
        graph = store.read(variant, self.file)
        made = variant.model_copy(update={"precision": precision, "inputs": (INPUT,), "outputs": (output_spec(10),)})
        runtime = load_runtime(store, store.put(made, {self.file: graph}), self.config())
        for lane in lanes_of(runtime):
            hint = lane._model.get_property("INFERENCE_PRECISION_HINT")
            assert hint.get_type_name() == computes
        runtime.close()


_AT_ONCE = """
import sys, threading
import numpy as np
import cluster.runtimes.openvino_runtime
import openvino as ov
from openvino import opset13

sys.setswitchinterval(1e-6)
x = opset13.parameter([-1, 4], np.float32)
model = ov.Core().compile_model(ov.Model([opset13.relu(x)], [x]), "CPU")
requests = [model.create_infer_request() for _ in range(8)]
tensors = [request.get_input_tensor() for request in requests]
barrier = threading.Barrier(len(tensors))

def write(tensor):
    barrier.wait()
    tensor.shape = [2, 4]
    tensor.data[:] = 1

threads = [threading.Thread(target=write, args=(tensor,)) for tensor in tensors]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_streams_whose_first_tensors_meet_do_not_wait_for_each_other_for_ever() -> None:
    """A process of its own: OpenVINO's binding could hang in the first tensor of a process only. Left to itself it did
    in 24 of 25."""
    subprocess.run([sys.executable, "-c", _AT_ONCE], check=True, timeout=60)
