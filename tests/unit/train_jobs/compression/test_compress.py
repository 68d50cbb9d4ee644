"""One trained model -> a tree of variants: complete manifests, each from its parent; what a model does not take is left
out with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load
from torch import Tensor, nn

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, InvalidRequest
from cluster.runtimes import runtimes_for
from cluster.slo import AccuracyFloor
from cluster.variants import Variant
from tests.unit.train_jobs.conftest import COMPRESS, Built
from train_jobs.compression.cast import to_bf16
from train_jobs.compression.compress import build_variants, compress
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.passes import Passes, Work
from train_jobs.compression.prune import PruneConfig, prune
from train_jobs.compression.quantize import QuantizeConfig, quantize
from train_jobs.compression.sparsify import masks, zeros
from train_jobs.compression.spec import CompressSpec
from train_jobs.compression.trained import TrainedModel, of_run
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT, output_spec, to_onnx
from train_jobs.loop import TrainResult

PARENTS = {
    "fp32-torch": None, "fp32": "fp32-torch", "int8": "fp32", "bf16": "fp32", "pruned": "fp32-torch",
    "pruned-int8": "pruned",
}  # fmt: skip
PRECISIONS = {"int8": "int8", "pruned-int8": "int8", "bf16": "bf16"}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def last(variants: list[Variant]) -> list[str]:
    return [variant.name.rsplit("/", 1)[-1] for variant in variants]


def test_the_lineage_is_a_tree_below_the_trained_module(built: Built) -> None:
    variants = built.variants
    assert list(variants) == list(PARENTS), "parents before children"
    for name, variant in variants.items():
        assert variant.name == f"cnn_digits/{name}"
        parent = PARENTS[name]
        assert variant.parent_id == (variants[parent].id if parent else None)
        assert variant.format == ("torch_export" if name == "fp32-torch" else "onnx")
        assert variant.precision == PRECISIONS.get(name, "fp32")


def test_each_pass_stands_in_the_manifest_with_its_parameters(built: Built) -> None:
    steps = {name: [step.name for step in variant.passes] for name, variant in built.variants.items()}
    assert steps == {
        "fp32-torch": ["train"], "fp32": ["export_onnx"], "int8": ["quantize_static_int8"], "bf16": ["cast_bf16"],
        "pruned": ["prune_channels", "finetune", "export_onnx"], "pruned-int8": ["quantize_static_int8"],
    }  # fmt: skip
    for name in ("int8", "pruned-int8"):
        assert built.variants[name].passes[0].params == QuantizeConfig().model_dump(mode="json")
    channels, tuned, _ = built.variants["pruned"].passes
    assert channels.params == PruneConfig().model_dump(mode="json", exclude={"finetune"})
    assert FinetuneConfig.model_validate(tuned.params) == FinetuneConfig(epochs=2)


def test_every_manifest_says_what_goes_in_and_out_and_how_it_is_prepared(
    built: Built, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    for variant in built.variants.values():
        (entry,), (result,) = variant.inputs, variant.outputs
        assert (entry.name, entry.datatype, entry.shape) == ("image", "UINT8", (-1, 1, 28, 28))
        assert (result.name, result.datatype, result.shape) == ("logits", "FP32", (-1, 10))
        assert variant.labels == tuple("0123456789")
        assert variant.preprocessing.startswith("uint8 0..255 -> (x / 255 - 0.3")
        assert "inside the graph" in variant.preprocessing
        assert TrainConfig.model_validate(variant.provenance["config"]) == quick_config
        judged = variant.provenance["dataset"]
        assert isinstance(judged, dict)
        assert (judged["name"], judged["test_sha256"]) == ("digits", digits.test_sha256)
        assert variant.provenance["made_on"]["libraries"]["torch"] == torch.__version__.split("+")[0]  # type: ignore[index,call-overload]
        text = (built.store.root / "variants" / f"{variant.id}.json").read_text()
        assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["id"] == variant.id


def test_the_store_gives_each_back_by_name_with_verified_bytes(built: Built) -> None:
    for variant in built.variants.values():
        assert built.store.get(variant.name) == variant
        assert len(variant.files) == (2 if variant.format == "torch_export" else 1)
        for file in variant.files:
            assert len(built.store.read(variant, file.path)) == file.size_bytes > 0
    assert built.store.verify() == []
    assert {v.id for v in built.store.list()} == {v.id for v in built.variants.values()}


def test_every_pass_makes_it_smaller(built: Built) -> None:
    size = {name: variant.size_bytes for name, variant in built.variants.items()}
    assert size["int8"] < 0.4 * size["fp32"]
    assert size["bf16"] < 0.55 * size["fp32"]
    assert size["pruned"] < 0.5 * size["fp32"]
    assert size["pruned-int8"] < 0.5 * size["pruned"]
    assert size["pruned-int8"] < size["int8"]


def test_each_graph_is_its_pass_applied_to_its_parent_s_graph(
    built: Built, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    """Calibrated on training pictures: the test set judges and nothing else."""
    graphs = {n: built.store.read(v, "model.onnx") for n, v in built.variants.items() if v.format == "onnx"}
    assert graphs["bf16"] == to_bf16(graphs["fp32"])
    for name, parent in (("int8", "fp32"), ("pruned-int8", "pruned")):
        on_train, on_test = (
            quantize(graphs[parent], pictures, QuantizeConfig(), inputs=INPUT)
            for pictures in (digits.x_train, digits.x_test)
        )
        assert graphs[name] == on_train != on_test
    subject = of_run(trained.model, quick_config, digits).subject_on(digits)
    smaller = prune(trained.model, PruneConfig(), inputs=INPUT)
    assert graphs["pruned"] == to_onnx(finetune(smaller, subject, FinetuneConfig(epochs=2)))
    kept = load(built.store.read(built.variants["fp32-torch"], "weights.safetensors"))
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(kept[name], tensor)


def test_what_is_told_names_each_variant_with_its_accuracy(built: Built) -> None:
    lines = [line for line in built.told if not line.startswith("fine-tune")]
    assert len(lines) == len(built.variants) == len(built.told) - 2
    for line, variant in zip(lines, built.variants.values(), strict=True):
        assert variant.accuracy is not None
        first = variant.accuracy
        assert line.startswith(f"{variant.name}: {first.value:.4f} on 450 test samples ({first.runtime}")
        verdict = f", {AccuracyFloor().verdict(first)}: at most 0.5 points below the trained model, "
        assert (verdict in line) == (variant.parent_id is not None)


def test_built_again_elsewhere_the_variants_are_the_same_ones(
    built: Built, store: ArtifactStore, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    model, config = of_run(trained.model, quick_config, digits), COMPRESS.without(["prune"])
    again = build_variants(store, model, digits, config)
    assert last(again) == ["fp32-torch", "fp32", "int8", "bf16"]
    for variant in again:
        first = built.variants[variant.name.rsplit("/", 1)[-1]]
        assert (variant.id, variant.files) == (first.id, first.files)
        assert [a.correct for a in variant.accuracies] == [a.correct for a in first.accuracies]
    assert store.verify() == []


def test_pictures_of_another_data_set_do_not_judge_a_model(
    trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    with pytest.raises(ConfigError, match="dataset='mnist', these samples are 'digits'"):
        of_run(trained.model, quick_config.model_copy(update={"dataset": "mnist"}), digits)


def imported(graph: bytes) -> TrainedModel:
    return TrainedModel(name="mine", family="imported", inputs=INPUT, outputs=output_spec(10), onnx=graph)


def test_a_graph_without_a_module_begins_its_own_line(
    built: Built, store: ArtifactStore, digits: LabelledDataset
) -> None:
    told: list[str] = []
    graph = built.store.read(built.variants["fp32"], "model.onnx")
    fp32, int8, bf16 = build_variants(store, imported(graph), digits, notify=told.append)
    assert last([fp32, int8, bf16]) == ["fp32", "int8", "bf16"]
    assert (fp32.parent_id, int8.parent_id, bf16.parent_id) == (None, fp32.id, fp32.id)
    assert [step.name for step in fp32.passes] == ["import_onnx"]
    assert store.read(fp32, "model.onnx") == graph
    reason = "prune trains the torch module, and the model is an ONNX file"
    assert [line.split(":")[0] for line in told if reason in line] == ["pruned", "pruned-int8"]
    for accuracy in (*int8.accuracies, *bf16.accuracies):
        assert accuracy.to_parent is not None
        assert accuracy.to_root == accuracy.to_parent
        assert accuracy.to_root.other_id == fp32.id


def test_neither_module_nor_graph_is_nothing_to_start_from(store: ArtifactStore, digits: LabelledDataset) -> None:
    nothing = TrainedModel(name="none", family="x", inputs=INPUT, outputs=output_spec(10))
    with pytest.raises(ConfigError, match="model none has neither a module nor an ONNX graph; pass one of them"):
        build_variants(store, nothing, digits)


def onnx_graph(*nodes: onnx.NodeProto, domain: str = "", **constants: np.ndarray) -> bytes:  # type: ignore[type-arg]
    """From `image` to `logits`."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT), *nodes], "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


FIRST_TEN = [
    helper.make_node("Slice", ["x", "start", "stop", "axis"], ["row"]),
    helper.make_node("Flatten", ["row"], ["flat"]),
]
"""The first ten pixels of the fourteenth row."""
SLICE = {
    "start": np.array([14, 9], np.int64), "stop": np.array([15, 19], np.int64), "axis": np.array([2, 3], np.int64),
}  # fmt: skip


def test_passes_that_a_model_does_not_take_are_left_out_with_the_reason(
    store: ArtifactStore, digits: LabelledDataset
) -> None:
    """No weights at all: nothing to quantize, to halve or to prune."""
    told: list[str] = []
    bare = onnx_graph(*FIRST_TEN, helper.make_node("Neg", ["flat"], ["logits"]), **SLICE)
    (fp32,) = build_variants(store, imported(bare), digits, notify=told.append)
    assert fp32.name == "mine/fp32"
    assert [line.split(":")[0] for line in told] == ["mine/fp32", "int8", "bf16", "pruned", "pruned-int8"]
    assert "int8: left out: the graph has none of the operators that are quantized" in told[1]
    assert "bf16: left out: the graph has no fp32 kernel or matrix" in told[2]


def test_a_runtime_that_cannot_load_a_graph_is_not_planned_for_it(
    store: ArtifactStore, digits: LabelledDataset
) -> None:
    """An operator of ONNX Runtime's own, which no other runtime knows."""
    told: list[str] = []
    own = helper.make_node("CDist", ["flat", "points"], ["logits"], domain="com.microsoft", metric="sqeuclidean")
    graph = onnx_graph(*FIRST_TEN, own, domain="com.microsoft", points=np.eye(10, dtype=np.float32), **SLICE)
    (fp32,) = build_variants(store, imported(graph), digits, CompressSpec(), notify=told.append)
    assert [accuracy.runtime for accuracy in fp32.accuracies] == ["onnxruntime"]
    assert not any("\n" in line for line in told), "one line each, whatever an executor has to say"
    others = [name for name in runtimes_for("onnx") if name != "onnxruntime"]
    for name in others:
        assert any(line.startswith(f"mine/fp32 does not run on {name} and is not planned there: ") for line in told)
    assert others, "openvino is installed with Sluice"


def test_what_all_starts_from_must_run(store: ArtifactStore, digits: LabelledDataset) -> None:
    one_at_a_time = onnx_graph(
        helper.make_node("Reshape", ["x", "flat"], ["row"]), helper.make_node("MatMul", ["row", "w"], ["logits"]),
        flat=np.array([1, 784], np.int64), w=np.ones((784, 10), np.float32),
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match="mine/fp32 does not run on onnxruntime: ONNX Runtime failed"):
        build_variants(store, imported(one_at_a_time), digits)
    with pytest.raises(InvalidRequest, match="mine/fp32 does not run on onnxruntime: ONNX Runtime cannot load"):
        build_variants(store, imported(b"no graph"), digits)
    assert store.refs() == {}, "a name never points at what was not measured"


class Tied(nn.Module):
    """One matrix in two places, and too few channels to prune."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.first, self.again = nn.Linear(784, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.again.weight = self.first.weight
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        row = self.entry(x.flatten(1).float() / 255.0)
        logits: Tensor = self.last(torch.relu(self.again(torch.relu(self.first(row)))))
        return logits


def test_a_module_with_one_matrix_in_two_places_is_kept_whole(store: ArtifactStore, digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    module = Tied()
    model = TrainedModel(name="tied", family="x", inputs=INPUT, outputs=output_spec(10), module=module)
    eager, fp32 = build_variants(store, model, digits, CompressSpec())
    kept = load(store.read(eager, "weights.safetensors"))
    assert kept.keys() == module.state_dict().keys()
    assert torch.equal(kept["again.weight"], module.first.weight)
    assert fp32.accuracies[0].to_parent is not None
    assert fp32.accuracies[0].to_parent.value == 0.0


def test_one_call_makes_one_variant_and_what_it_comes_from(
    store: ArtifactStore, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    model = of_run(trained.model, quick_config, digits)
    steps = CompressSpec.of({"x": ["optimise", "int8"]}).variants["x"]
    variant = compress(store, model, digits, steps, name="tight")
    assert variant.name == "cnn_digits/tight"
    assert [step.name for step in variant.passes] == ["optimise_graph", "quantize_static_int8"]
    assert variant.parent_id == store.get("cnn_digits/fp32").id
    assert sorted(store.refs()) == ["cnn_digits/fp32", "cnn_digits/fp32-torch", "cnn_digits/tight"]
    nothing_left = CompressSpec.of({"x": [{"prune": {"ratio": 0.99, "round_to": 1}}]}).variants["x"]
    with pytest.raises(InvalidRequest, match=r"ratio=0\.99 leaves none of the"):
        compress(store, model, digits, nothing_left, name="none")


def test_what_sparsify_set_to_zero_stays_so_in_later_passes(
    trained: TrainResult, quick_config: TrainConfig, few_digits: LabelledDataset
) -> None:
    model = of_run(trained.model, quick_config, few_digits)
    short = {"finetune": {"epochs": 1}}
    steps = CompressSpec.of({"x": [
        {"sparsify": {"sparsity": 0.5, **short}}, {"finetune": {"epochs": 1}},
        {"prune": {"ratio": 0.25, "round_to": 1, **short}},
    ]}).variants["x"]  # fmt: skip
    passes, work = Passes(model, model.subject_on(few_digits), lambda line: None), Work(model.module, None)
    shares, modules = [], []
    for step in steps:
        work = passes.apply(step, work)
        assert work.module is not None
        shares.append(zeros(work.module))
        modules.append(work.module)
    sparse, tuned, pruned = shares
    assert sparse == pytest.approx(0.5, abs=0.01)
    assert tuned == sparse
    assert pruned > 0.3, "channels that stayed have their zeros still"
    moved = [not torch.equal(a, b) for a, b in zip(*(m.parameters() for m in modules[:2]), strict=True)]
    assert any(moved), "the rest went on learning"


def test_what_sparsify_set_to_zero_stays_so_between_steps_of_pruning_and_in_int8(
    trained: TrainResult, quick_config: TrainConfig, few_digits: LabelledDataset
) -> None:
    model = of_run(trained.model, quick_config, few_digits)
    still, learns = {"epochs": 1, "lr": 1e-7}, {"epochs": 3, "lr": 3e-3}  # so that there is something to learn back
    steps = CompressSpec.of({"x": [
        {"sparsify": {"sparsity": 0.8, "finetune": still}},
        {"prune": {"ratio": 0.5, "steps": 2, "between": learns, "finetune": still}}, {"qat": {"finetune": learns}},
    ]}).variants["x"]  # fmt: skip
    passes, work = Passes(model, model.subject_on(few_digits), lambda line: None), Work(model.module, None)
    made = []
    for step in steps:
        work = passes.apply(step, work)
        assert work.module is not None
        made.append(work.module)
    _, pruned, rounded = made
    assert zeros(pruned) > 0.5, "it would have next to none, had the training between the steps not held them"
    held = masks(pruned)
    moved = [not torch.equal(rounded.get_parameter(name), pruned.get_parameter(name)) for name in held]
    assert all(moved)
    assert held
    for name, zero in held.items():
        assert bool((rounded.get_parameter(name)[zero] == 0).all()), name
    assert zeros(rounded) >= zeros(pruned), "a small weight may round to nought besides"
    assert work.graph is not None
    weights = [numpy_helper.to_array(t) for t in onnx.load_from_string(work.graph).graph.initializer]
    eight = [weight for weight in weights if weight.dtype == np.int8 and weight.ndim > 1]
    assert len(eight) > 1
    assert sum(int((weight == 0).sum()) for weight in eight) > 0.5 * sum(weight.size for weight in eight)


def test_a_variant_comes_from_the_longest_list_that_its_own_begins_with(
    store: ArtifactStore, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    """Shared passes are applied once, and stand in the manifest of the variant that they made."""
    told: list[str] = []
    small = {"prune": {"finetune": {"epochs": 1}}}
    spec = CompressSpec.of({"deep": [small, {"finetune": {"epochs": 1}}, "int8"], "mid": [small], "plain": ["int8"]})
    model = of_run(trained.model, quick_config, digits)
    made = {v.name.rpartition("/")[2]: v for v in build_variants(store, model, digits, spec, notify=told.append)}
    assert list(made) == ["fp32-torch", "fp32", "mid", "plain", "deep"]
    assert made["deep"].parent_id == made["mid"].id
    assert [step.name for step in made["deep"].passes] == ["finetune", "export_onnx", "quantize_static_int8"]
    assert made["plain"].parent_id == made["fp32"].id
    assert sum(line.startswith("fine-tune epoch") for line in told) == 2, "the pruned model was fine-tuned once"
    assert made["deep"].precision == "int8"
