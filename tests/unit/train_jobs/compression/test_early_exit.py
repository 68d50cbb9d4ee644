"""Easy samples leave early; the answers are those of one of the two heads, whoever else is in the batch."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from cluster.errors import InvalidRequest
from tests.unit.train_jobs.compression import subjects
from train_jobs.compression.early_exit import Early, EarlyExitConfig, Exit, chosen, early_exit
from train_jobs.compression.finetune import FinetuneConfig
from train_jobs.models import CNN

CONFIG = EarlyExitConfig(max_drop=0.05, finetune=FinetuneConfig(epochs=6, lr=5e-3))


@pytest.fixture(scope="module")
def made() -> tuple[subjects.Case, Exit]:
    """Half of the samples leave: the threshold is the median of what the head is sure of."""
    case = subjects.case("cnn")
    found = early_exit(case.model, case.subject, CONFIG)
    session = ort.InferenceSession(found.graph, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "logits"
    everybody = answers(early_exit(case.model, case.subject, CONFIG.model_copy(update={"threshold": 1e-3})).graph,
                        case.subject.samples(100))  # fmt: skip
    probability = np.exp(everybody - everybody.max(1, keepdims=True))
    middle = float(np.median(probability.max(1) / probability.sum(1)))
    return case, early_exit(case.model, case.subject, CONFIG.model_copy(update={"threshold": middle}))


def answers(graph: bytes, x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def test_some_leave_and_some_stay_and_each_answer_is_its_heads_own(made: tuple[subjects.Case, Exit]) -> None:
    case, found = made
    x = case.subject.samples(100)
    told = answers(found.graph, x)
    with torch.inference_mode():
        late = case.model(torch.from_numpy(x)).numpy()
    from_late = np.isclose(told, late, atol=1e-4).all(1)
    assert 0.3 < from_late.mean() < 0.7
    early = told[~from_late]
    probability = np.exp(early - early.max(1, keepdims=True))
    assert (probability.max(1) / probability.sum(1) >= found.threshold - 1e-5).all(), "who left was sure"
    right = case.subject.judge()
    assert right.metric.name == "accuracy"


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(made: tuple[subjects.Case, Exit], rows: int) -> None:
    case, found = made
    x = case.subject.samples(64)
    whole = answers(found.graph, x)
    pieces = np.concatenate([answers(found.graph, x[i : i + rows]) for i in range(0, len(x), rows)])
    np.testing.assert_allclose(pieces, whole, atol=1e-4)


def test_the_lowest_threshold_that_holds_is_taken_and_nobody_leaves_where_none_does(
    made: tuple[subjects.Case, Exit],
) -> None:
    case, _ = made

    class Sure(nn.Module):
        """Always the same class, with a probability that rises with the sample's brightness."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(x), 10)
            logits[:, 3] = x.float().mean((1, 2, 3)) / 10
            return logits

    threshold, leaves = chosen(Sure(), case.model, case.subject, EarlyExitConfig(max_drop=0.0))
    assert leaves < 0.5
    everybody, all_leave = chosen(case.model, case.model, case.subject, EarlyExitConfig(max_drop=0.0))
    assert everybody == 0.5, "the very same answers: the lowest threshold costs nothing"
    assert all_leave > leaves
    assert threshold > everybody


def test_the_trained_layers_stay_as_they_are(made: tuple[subjects.Case, Exit]) -> None:
    case, _ = made
    assert isinstance(case.model, CNN)
    early = Early(case.model, 2, torch.from_numpy(case.subject.samples(2)))
    early.zero_grad(set_to_none=True)  # of its own training
    early(torch.from_numpy(case.subject.samples(4))).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in early.front.parameters())
    assert all(p.grad is not None for p in early.head.parameters())


def test_a_model_without_such_a_place_is_refused() -> None:
    case = subjects.case("rows")
    with pytest.raises(InvalidRequest, match="a Recurrent has no place where samples could leave early"):
        early_exit(case.model, case.subject, CONFIG)
