"""A trained CNN -> one graph in which easy samples leave early: a small head behind the first block answers those of
which it is sure, and only the others go through the rest.

Teerapittayanon, McDanel and Kung, "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks", ICPR 2016,
section III; sure means a largest probability of at least a threshold, as MSDNet has it (Huang et al., ICLR 2018,
section 4.2). The trained layers stay as they are: the new head alone learns, so nobody's answer changes but by leaving
early.

The graph takes the undecided rows out of the batch, sends them on, and puts their answers back (by Gather: the places
of a Scatter are not checked by every runtime): a batch costs what its hard samples cost, and an answer does not depend
on the others in its batch.

Shapes: B batch, C channels, H height, W width, K classes, N undecided rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.subject import Subject
from train_jobs.export import to_onnx
from train_jobs.models import CNN

_BETWEEN, _EARLY, _LATE = "exit.features", "exit.logits", "exit.late"
_STARTS = (3, 6)
"""Where the CNN's features may be cut: behind its first block, behind its second."""
_THRESHOLDS = 200


class EarlyExitConfig(BaseModel):
    """Where samples may leave, and what that may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    after: int = Field(default=1, ge=1, le=len(_STARTS))
    """The block behind which they may."""
    max_drop: float = Field(default=0.002, ge=0, lt=1)
    """How far the accuracy on validation samples may fall; the threshold is the lowest that keeps it."""
    threshold: float | None = Field(default=None, gt=0)
    """The probability from which a sample leaves; None: the lowest that keeps `max_drop`."""
    finetune: FinetuneConfig = FinetuneConfig()
    """How the new head learns."""


class Early(nn.Module):
    """Samples -> logits (B, K) of the early head. What stands before it learns nothing."""

    def __init__(self, model: CNN, after: int, example: Tensor) -> None:
        super().__init__()
        self.preprocess = model.preprocess
        self.front = model.features[: _STARTS[after - 1]]
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
        with torch.no_grad():
            width = self.head(self.features(example)).shape[1]
        last = model.head[-1]
        assert isinstance(last, nn.Linear)
        self.head.append(nn.Linear(width, last.out_features))

    def features(self, x: Tensor) -> Tensor:
        """What the rest goes on with, (B, C, H, W)."""
        found: Tensor = self.front(self.preprocess(x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.features(x)
        logits_BK: Tensor = self.head(found)
        return logits_BK


class Both(nn.Module):
    """Samples -> (features, early logits): the graph's beginning."""

    def __init__(self, early: Early) -> None:
        super().__init__()
        self.early = early

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.early.features(x)
        return found, self.early.head(found)


@dataclass(frozen=True)
class Exit:
    """What came of it."""

    graph: bytes
    threshold: float
    leaves: float
    """Share of the validation samples that leave early."""


def early_exit(
    model: nn.Module, subject: Subject, config: EarlyExitConfig, *, notify: Callable[[str], None] = lambda line: None
) -> Exit:
    """The graph with an early exit; `model` itself stays as it is. Raises InvalidRequest for a model that is no CNN of
    train_jobs/models/cnn.py, TrainingFailed as `finetune` does."""
    if not isinstance(model, CNN):
        raise InvalidRequest(
            f"a {type(model).__name__} has no place where samples could leave early that Sluice knows; early_exit "
            "takes the small CNN (model.kind=cnn), leave it out"
        )
    whole = copy.deepcopy(model).eval()
    example = torch.from_numpy(subject.samples(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.finetune.seed)
        early = Early(whole, config.after, example)
    trained = finetune(early, subject, config.finetune, notify=lambda line: notify(f"early exit: {line}"))
    assert isinstance(trained, Early)
    threshold, leaves = chosen(trained, whole, subject, config)
    rest = nn.Sequential(*whole.features[_STARTS[config.after - 1] :], *whole.head).eval()
    return Exit(_joined(trained, rest, subject, threshold), threshold, leaves)


@torch.inference_mode()
def chosen(early: nn.Module, whole: nn.Module, subject: Subject, config: EarlyExitConfig) -> tuple[float, float]:
    """(threshold, share that leaves): the lowest threshold with which at most `max_drop` of accuracy is lost on the
    validation samples; above 1 nobody leaves."""
    seed, share = config.finetune.seed, config.finetune.validation
    sure, early_right, late_right = [], [], []
    for x, y in subject.kept(seed=seed, validation=share):
        confidence, guess = early(x).softmax(1).max(1)
        sure.append(confidence)
        early_right.append(guess == y)
        late_right.append(whole(x).argmax(1) == y)
    confidence_N, early_N, late_N = (torch.cat(each) for each in (sure, early_right, late_right))
    if config.threshold is not None:
        return config.threshold, float((confidence_N >= config.threshold).double().mean())
    needed = late_N.double().mean() - config.max_drop
    for threshold in torch.linspace(0.5, 1.0, _THRESHOLDS + 1).tolist():
        leaves_N = confidence_N >= threshold
        if torch.where(leaves_N, early_N, late_N).double().mean() >= needed:
            return threshold, float(leaves_N.double().mean())
    return 1.1, 0.0


def _joined(early: Early, rest: nn.Module, subject: Subject, threshold: float) -> bytes:
    """One graph of both. Names of the rest get a prefix, so that none is there twice."""
    (output,) = subject.outputs
    begin = onnx.load_from_string(to_onnx(Both(early), subject.inputs, (_BETWEEN, _EARLY)))
    features = early.features(torch.from_numpy(subject.samples(2))).shape[1:]
    between = TensorSpec(name=_BETWEEN, datatype="FP32", shape=(-1, *features))
    end = compose.add_prefix(onnx.load_from_string(to_onnx(rest, between, (_LATE,))), "rest.")
    nodes = [
        helper.make_node("Softmax", [_EARLY], ["exit.probabilities"], axis=1),
        helper.make_node("ReduceMax", ["exit.probabilities", "exit.axis"], ["exit.confidence_B1"], keepdims=1),
        helper.make_node("Less", ["exit.confidence_B1", "exit.threshold"], ["exit.undecided_B1"]),
        helper.make_node("Squeeze", ["exit.undecided_B1", "exit.axis"], ["exit.undecided"]),
        helper.make_node("NonZero", ["exit.undecided"], ["exit.rows_1N"]),
        helper.make_node("Squeeze", ["exit.rows_1N", "exit.first"], ["exit.rows"]),
        helper.make_node("Gather", [_BETWEEN, "exit.rows"], [f"rest.{_BETWEEN}"], axis=0),
        *end.graph.node,
        # Where each answer stands among those of the rest; for who left, the row of noughts after them.
        helper.make_node("Concat", [f"rest.{_LATE}", "exit.nought"], ["exit.late_and_nought"], axis=0),
        helper.make_node("Cast", ["exit.undecided"], ["exit.ones"], to=TensorProto.INT64),
        helper.make_node("CumSum", ["exit.ones", "exit.first_axis"], ["exit.count"]),
        helper.make_node("Sub", ["exit.count", "exit.axis"], ["exit.place"]),
        helper.make_node("Where", ["exit.undecided", "exit.place", "exit.last"], ["exit.places"]),
        helper.make_node("Gather", ["exit.late_and_nought", "exit.places"], ["exit.put_back"], axis=0),
        helper.make_node("Where", ["exit.undecided_B1", "exit.put_back", _EARLY], [output.name]),
    ]
    for number, node in enumerate(nodes):
        node.name = node.name or f"exit.{node.op_type}.{number}"
    constants = [
        numpy_helper.from_array(np.array(values, dtype), f"exit.{name}")
        for name, values, dtype in (
            ("axis", [1], np.int64), ("first", [0], np.int64), ("first_axis", 0, np.int64), ("last", [-1], np.int64),
            ("threshold", threshold, np.float32), ("nought", np.zeros((1, output.shape[1])), np.float32),
        )
    ]  # fmt: skip
    graph = helper.make_graph(
        [*begin.graph.node, *nodes], "early_exit", list(begin.graph.input),
        [helper.make_tensor_value_info(output.name, TensorProto.FLOAT, _shape(begin, output))],
        [*begin.graph.initializer, *end.graph.initializer, *constants],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=list(begin.opset_import), ir_version=begin.ir_version)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _shape(model: onnx.ModelProto, output: TensorSpec) -> Sequence[str | int]:
    """The output's, its batch called as the input's is."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    return [batch, *output.shape[1:]]
