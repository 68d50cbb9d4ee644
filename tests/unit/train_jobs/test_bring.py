"""A model of the user's own: an ONNX file made elsewhere, or a function that returns a module; never what we train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InvalidRequest
from tests.unit.train_jobs.users import Project
from train_jobs import datasets
from train_jobs.bring import load_model
from train_jobs.compression.compress import build_variants
from train_jobs.compression.spec import CompressSpec
from train_jobs.datasets import LabelledDataset

HIDDEN = 16


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    """Fisher's irises as float32 (N, 4), three classes, in a .npz file."""
    raw = load_iris()
    path = tmp_path_factory.mktemp("data") / "irises.npz"
    np.savez(path, x=raw.data.astype(np.float32), y=raw.target, labels=raw.target_names)
    return datasets.load(str(path))


@pytest.fixture(scope="module")
def mlp(flowers: LabelledDataset) -> MLPClassifier:
    """Trained by scikit-learn: nothing of ours has a part in it."""
    classifier = MLPClassifier((HIDDEN,), max_iter=800, learning_rate_init=0.02, random_state=0)
    return classifier.fit(flowers.x_train, flowers.y_train)


@pytest.fixture(scope="module")
def proto(mlp: MLPClassifier) -> onnx.ModelProto:
    """Two layers written out by hand: input "petals" float32 [1, 4], output "odds" [1, 3], a fixed batch of 1."""
    weights = {
        name: numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in zip(("w1", "w2", "b1", "b2"), [*mlp.coefs_, *mlp.intercepts_], strict=True)
    }
    nodes = [
        helper.make_node("Gemm", ["petals", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["odds"]),
    ]
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("petals", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("odds", TensorProto.FLOAT, [1, 3])], list(weights.values()),
        value_info=[helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, HIDDEN])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


Save = Callable[..., str]


@pytest.fixture
def saved(proto: onnx.ModelProto, tmp_path: Path) -> Save:
    """`saved(change)`: the path of a file with the graph after `change(model)`."""

    def save(change: Callable[[onnx.ModelProto], Any] = lambda model: None) -> str:
        model = onnx.ModelProto()
        model.CopyFrom(proto)
        model = change(model) or model
        onnx.save(model, tmp_path / "irises.onnx")
        return str(tmp_path / "irises.onnx")

    return save


def answers(graph: bytes, samples: NDArray[Any], name: str = "petals") -> NDArray[np.float32]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    scores: NDArray[np.float32] = session.run(None, {name: samples})[0]
    return scores


def test_a_users_own_graph_becomes_variants_measured_on_both_runtimes(
    saved: Save, flowers: LabelledDataset, mlp: MLPClassifier, tmp_path: Path
) -> None:
    told: list[str] = []
    model = load_model(saved(), flowers)
    made = build_variants(ArtifactStore(tmp_path / "store"), model, flowers, notify=told.append)
    assert [v.name for v in made] == ["irises/fp32", "irises/int8", "irises/bf16"]
    right = int((mlp.predict(flowers.x_test) == flowers.y_test).sum())
    assert right >= 25, "a trained model: chance would get 10 of 30"
    for variant in made:
        assert [a.runtime for a in variant.accuracies] == ["onnxruntime", "openvino"]
        assert all(a.total == 30 and a.dataset == "irises" for a in variant.accuracies)
        assert variant.inputs[0].model_dump() == {"name": "petals", "datatype": "FP32", "shape": (-1, 4)}
        assert variant.outputs[0].model_dump() == {"name": "odds", "datatype": "FP32", "shape": (-1, 3)}
        assert variant.labels == ("setosa", "versicolor", "virginica")
    assert [a.correct for a in made[0].accuracies] == [right, right]
    assert made[0].passes[0].name == "import_onnx"
    assert made[0].provenance["dataset"] == {
        "name": "irises", "spec": flowers.spec, "test_sha256": flowers.test_sha256,
    }  # fmt: skip
    assert made[0].provenance["model"] == {"spec": str(tmp_path.resolve() / "irises.onnx")}
    assert any("pruned: left out" in line for line in told)


@pytest.mark.parametrize("batch", [1, 2, 30])
def test_a_fixed_batch_is_made_free(saved: Save, flowers: LabelledDataset, mlp: MLPClassifier, batch: int) -> None:
    model = load_model(saved(), flowers, name="mine")
    assert model.name == "mine"
    assert model.onnx is not None
    scores = answers(model.onnx, flowers.x_test[:batch])
    assert scores.shape == (batch, 3)
    odds = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(odds, mlp.predict_proba(flowers.x_test[:batch]), atol=1e-5)


def with_reshapes(model: onnx.ModelProto) -> None:
    """The hidden layer through [1, 2, HIDDEN/2] and back to [1, HIDDEN], in numbers, as tracing exporters write it."""
    there, back = np.array([1, 2, HIDDEN // 2]), np.array([1, -1])
    model.graph.initializer.append(numpy_helper.from_array(there, "there"))
    model.graph.node[1].output[0] = "before"
    model.graph.node.insert(2, helper.make_node("Reshape", ["before", "there"], ["between"], allowzero=1))
    model.graph.node.insert(3, helper.make_node("Constant", [], ["back"], value=numpy_helper.from_array(back)))
    model.graph.node.insert(4, helper.make_node("Reshape", ["between", "back"], ["active"]))


def test_reshapes_to_a_batch_in_numbers_are_made_free_too(saved: Save, flowers: LabelledDataset) -> None:
    plain, reshaped = load_model(saved(), flowers), load_model(saved(with_reshapes), flowers)
    assert plain.onnx is not None
    assert reshaped.onnx is not None
    assert plain.onnx != reshaped.onnx
    np.testing.assert_allclose(answers(reshaped.onnx, flowers.x_test), answers(plain.onnx, flowers.x_test), atol=1e-6)


def over_the_batch(model: onnx.ModelProto) -> None:
    """Scores minus their mean over the batch: of one sample all are nought."""
    model.graph.node[2].output[0] = "raw"
    model.graph.node.append(helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0]))
    model.graph.node.append(helper.make_node("Sub", ["raw", "mean"], ["odds"]))


def free(model: onnx.ModelProto) -> None:
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_param = "N"


def test_a_graph_that_mixes_the_samples_of_a_batch_is_refused(saved: Save, flowers: LabelledDataset) -> None:
    for change in (over_the_batch, lambda model: (over_the_batch(model), free(model))[1]):
        with pytest.raises(ConfigError, match=r"batches of 1 alone.* change with the number of samples.*dynamic_axes"):
            load_model(saved(change), flowers)


def test_old_operator_sets_are_converted_and_weights_as_inputs_come_inside(
    saved: Save, flowers: LabelledDataset
) -> None:
    def old(model: onnx.ModelProto) -> onnx.ModelProto:
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
        model.opset_import[0].version = 9
        model.ir_version = 3
        return model

    as_new, as_old = load_model(saved(), flowers), load_model(saved(old), flowers)
    assert as_new.onnx is not None
    assert as_old.onnx is not None
    converted = onnx.load_from_string(as_old.onnx)
    assert converted.opset_import[0].version >= 13
    assert [entry.name for entry in converted.graph.input] == ["petals"]
    np.testing.assert_allclose(answers(as_old.onnx, flowers.x_test), answers(as_new.onnx, flowers.x_test), atol=1e-6)


def test_external_weights_come_inside_and_missing_ones_are_told(
    proto: onnx.ModelProto, flowers: LabelledDataset, tmp_path: Path
) -> None:
    path = tmp_path / "big.onnx"
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    onnx.save(model, path, save_as_external_data=True, location="big.data", size_threshold=0)
    loaded = load_model(str(path), flowers)
    assert loaded.onnx is not None
    (tmp_path / "big.data").unlink()
    assert answers(loaded.onnx, flowers.x_test).shape == (30, 3)
    with pytest.raises(ConfigError, match=r"big\.onnx is no ONNX graph that can be used .*external data beside it"):
        load_model(str(path), flowers)


def free_everywhere(model: onnx.ModelProto) -> None:
    free(model)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    model.graph.output[0].type.tensor_type.ClearField("shape")


def test_free_sizes_become_those_of_the_samples(saved: Save, flowers: LabelledDataset) -> None:
    model = load_model(saved(free_everywhere), flowers)
    assert (model.inputs.shape, model.outputs.shape) == ((-1, 4), (-1, 3))
    assert model.onnx is not None
    entry = onnx.load_from_string(model.onnx).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in entry] == ["batch", 4]


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("active", TensorProto.FLOAT, [1, HIDDEN]))


def labels_alone(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "raw"
    model.graph.node.append(helper.make_node("ArgMax", ["raw"], ["odds"], axis=1))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


def one_score(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "raw"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zeroth"))
    model.graph.node.append(helper.make_node("Gather", ["raw", "zeroth"], ["odds"], axis=1))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


def quantized(model: onnx.ModelProto) -> None:
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(9), "z")
    model.graph.initializer.extend([scale, zero])
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["petals", "s", "z"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]))
    model.graph.node[2].input[0] = "dq"


def takes_bytes(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node[0].input[0] = "cast"
    model.graph.node.insert(0, helper.make_node("Cast", ["petals"], ["cast"], to=TensorProto.FLOAT))


def not_finite(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full(HIDDEN, np.nan, np.float32), "b1"))


def five_features(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


REFUSED = {
    second_output: r"has the outputs \['odds', 'active'\].*extract_model\('irises\.onnx'",
    labels_alone: r"answers int64, not scores; .*ArgMax",
    one_score: r"'odds' has shape \[3, 1\] for 3 samples.*3 classes: \[3, 3\]; one score z .*\[-z, z\]",
    quantized: r"quantized already \(QuantizeLinear\); bring the fp32 graph",
    takes_bytes: r"'petals' takes uint8, the samples are float32; give the samples as uint8",
    not_finite: "holds NaN or infinity on real samples",
    five_features: r"'petals' has shape \[1, 5\], the samples are \[30, 4\]; they must agree",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_does_not_fit_is_refused_with_the_way_out(
    saved: Save, flowers: LabelledDataset, change: Callable[[onnx.ModelProto], None]
) -> None:
    with pytest.raises(ConfigError, match=REFUSED[change]):
        load_model(saved(change), flowers)


def test_bytes_are_never_scaled_for_a_graph_of_floats(saved: Save, digits: LabelledDataset) -> None:
    with pytest.raises(ConfigError, match=r"takes float32, the samples are uint8; only you know its scale\."):
        load_model(saved(), digits)


def test_what_is_no_graph_is_refused(saved: Save, flowers: LabelledDataset, tmp_path: Path) -> None:
    path = saved()
    Path(path).write_bytes(b"no graph")
    with pytest.raises(ConfigError, match=r"irises\.onnx is no ONNX graph that can be used"):
        load_model(path, flowers)
    with pytest.raises(ConfigError, match=r"absent\.onnx'?: there is no such file"):
        load_model(str(tmp_path / "absent.onnx"), flowers)
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a \.pt holds no graph that can be read without running it"):
        load_model(str(tmp_path / "weights.pt"), flowers)
    with pytest.raises(ConfigError, match=r"model='resnet' is neither an \.onnx file nor pkg\.module:function"):
        load_model("resnet", flowers)
    with pytest.raises(ConfigError, match="name='a b' names no variants"):
        load_model(saved(), flowers, name="a b")


MODULES = """
import torch
from torch import nn
from sklearn.datasets import load_iris

class Own(nn.Module):
    def __init__(self, out=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                                  nn.Dropout(0.5))
        self.head = nn.Linear(32, out)
    def forward(self, petals):
        return self.head(self.body(petals))

def model():
    torch.manual_seed(0)
    own, raw = Own(), load_iris()
    x, y = torch.from_numpy(raw.data).float(), torch.from_numpy(raw.target)
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
    for _ in range(200):
        loss = nn.functional.cross_entropy(own(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    return own

ready = Own()
two = Own(out=2)
in_float64 = Own().double()
in_half = nn.Sequential(Own(), nn.Softmax(1)).to(torch.bfloat16)
not_trained = "weights.pt"

class Several(Own):
    def forward(self, petals):
        return {"logits": super().forward(petals)}

class Mixing(Own):
    def forward(self, petals):
        scores = super().forward(petals)
        return scores - scores.mean(0)

class Branching(Own):
    def forward(self, petals):
        scores = super().forward(petals)
        return scores if scores.sum() > 0 else scores * 2.0

class Tied(Own):
    def __init__(self):
        super().__init__()
        self.again = self.body[3]

class NoTraining(Own):
    def forward(self, petals):
        if self.training:
            raise RuntimeError("inference only")
        return super().forward(petals)
"""


def test_a_function_of_ones_own_becomes_all_six_variants(
    project: Project, flowers: LabelledDataset, tmp_path: Path
) -> None:
    module = project.write(MODULES)
    model = load_model(f"{module}:model", flowers)
    assert (model.name, model.family) == (module, "Own")
    assert (model.inputs.shape, model.inputs.datatype, model.outputs.shape) == ((-1, 4), "FP32", (-1, 3))
    assert model.provenance == {"model": {"spec": f"{project.folder}:{module}:model"}}
    made = build_variants(ArtifactStore(tmp_path / "store"), model, flowers)
    assert [v.name.split("/")[1] for v in made] == ["fp32-torch", "fp32", "int8", "bf16", "pruned", "pruned-int8"]
    for variant in made:
        runtimes = ["torch"] if variant.format == "torch_export" else ["onnxruntime", "openvino"]
        assert [a.runtime for a in variant.accuracies] == runtimes
    assert made[0].accuracy is not None
    assert made[0].accuracy.correct >= 25


QUICK = CompressSpec()


def test_weights_used_in_two_places_and_a_class_to_be_called_are_fine(
    project: Project, flowers: LabelledDataset, tmp_path: Path
) -> None:
    model = load_model(f"{project.write(MODULES)}:Tied", flowers)
    assert model.name.endswith(".Tied")
    assert len(build_variants(ArtifactStore(tmp_path / "store"), model, flowers, QUICK)) == 2


def test_what_cannot_be_trained_is_not_pruned_and_the_rest_is_made(
    project: Project, flowers: LabelledDataset, tmp_path: Path
) -> None:
    told: list[str] = []
    model = load_model(f"{project.write(MODULES)}:NoTraining", flowers)
    config = CompressSpec.of({"pruned": ["prune"]})
    made = build_variants(ArtifactStore(tmp_path / "store"), model, flowers, config, notify=told.append)
    assert [v.name.split("/")[1] for v in made] == ["fp32-torch", "fp32"]
    assert any("pruned: left out" in line and "inference only" in line for line in told)


def test_what_torch_cannot_export_is_one_error(project: Project, flowers: LabelledDataset, tmp_path: Path) -> None:
    model = load_model(f"{project.write(MODULES)}:Branching", flowers)
    with pytest.raises(InvalidRequest, match=r"cannot be exported as a torch program .*no branches on values"):
        build_variants(ArtifactStore(tmp_path / "store"), model, flowers, QUICK)


REFUSED_MODULES = {
    "two": r"answers \[3, 2\] for 3 samples; .*each of the 3 classes of irises: \[3, 3\]",
    "in_float64": r"fails on samples float32 \[3, 4\]: RuntimeError: .*; the samples are float32: ",
    "in_half": "fails on samples float32",
    "Several": r"answers dict; it must answer one float32 tensor",
    "Mixing": "answers a sample differently when others are in its batch",
    "not_trained": r"gives str; it must give a trained torch\.nn\.Module",
}


@pytest.mark.parametrize("name", REFUSED_MODULES)
def test_a_module_that_does_not_fit_is_refused(project: Project, flowers: LabelledDataset, name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED_MODULES[name]):
        load_model(f"{project.write(MODULES)}:{name}", flowers)


def test_a_module_of_floats_is_told_how_to_take_bytes(
    project: Project, digits: LabelledDataset, flowers: LabelledDataset
) -> None:
    module = project.write("from torch import nn\nmodel = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))")
    with pytest.raises(ConfigError, match=r"fails on samples uint8 .*only you know its scale\. Put it into the model"):
        load_model(f"{module}:model", digits)


def test_more_classes_than_ten_and_only_two(project: Project, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 25):
        centres = rng.normal(size=(classes, 30)) * 3
        y = np.repeat(np.arange(classes), 12)
        x = (centres[y] + rng.normal(size=(len(y), 30))).astype(np.float32)
        np.savez(tmp_path / "made.npz", x=x, y=y)
        dataset = datasets.load(str(tmp_path / "made.npz"))
        # The nearest centre, as a linear layer: x.c - |c|^2 / 2.
        weights = torch.from_numpy(centres.astype(np.float32))
        torch.save(weights, tmp_path / "centres.pt")
        module = project.write(
            "import torch\nfrom torch import nn\n"
            f"c = torch.load({str(tmp_path / 'centres.pt')!r}, weights_only=True)\n"
            "model = nn.Linear(*reversed(c.shape))\n"
            "model.load_state_dict({'weight': c, 'bias': -(c * c).sum(1) / 2})\n"
        )
        made = build_variants(
            ArtifactStore(tmp_path / f"store-{classes}"), load_model(f"{module}:model", dataset), dataset
        )
        assert [v.outputs[0].shape for v in made] == [(-1, classes)] * len(made)
        assert {"fp32-torch", "fp32", "int8", "bf16"} <= {v.name.split("/")[1] for v in made}
        assert all(a.value > 0.9 for v in made for a in v.accuracies)
