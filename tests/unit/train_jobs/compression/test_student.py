"""Students: narrower models of the same family, which learn from the trained one or from an ensemble."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cluster.errors import ConfigError
from tests.unit.train_jobs.compression.subjects import (
    CONFIGS,
    FAMILIES,
    GENERATORS,
    answers,
    case,
    classify,
    ensemble,
    few,
    parameters,
    same,
    weights,
)
from train_jobs.compression.student import DistillConfig, distill, student_of
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.export import to_onnx
from train_jobs.loop import TrainResult
from train_jobs.models import Ensemble, VisionConfig
from train_jobs.tasks.classify import correct

SHORT = DistillConfig(epochs=3, batch_size=64, validation=0.1)


def student(name: str, width: float = 0.5, depth: int | None = None) -> nn.Module:
    made = case(name)
    return student_of(made.config, made.shapes, width, depth)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_of_every_family_is_smaller_and_learns(name: str) -> None:
    made, small = case(name), student(name)
    assert answers(small, made.x())[0].shape == answers(made.model, made.x())[0].shape
    assert type(small) is type(made.model)
    assert parameters(small) < 0.75 * parameters(made.model) or name == "gan_dense", "which is as narrow as it can be"
    before, theirs, told = weights(small), weights(made.model), list[str]()
    tuned = distill(small, made.model, made.subject, SHORT, notify=told.append)
    assert same(weights(small), before)
    assert same(weights(made.model), theirs)
    assert not tuned.training
    assert made.score(tuned) > made.score(small)
    assert told[0].startswith("student: fine-tune epoch 1/3: loss")


def test_the_teachers_way_to_scale_is_the_students() -> None:
    for name in FAMILIES:
        if name in GENERATORS:
            continue
        made = case(name)
        tuned = distill(student(name), made.model, made.subject, SHORT.model_copy(update={"epochs": 1}))
        for key, tensor in weights(made.model.preprocess).items():  # type: ignore[arg-type]
            assert torch.equal(tuned.state_dict()[f"preprocess.{key}"], tensor), (name, key)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cnn", {"width": 0.25}), ("rows", {"hidden": 8}), ("lstm", {"hidden": 8, "layers": 2}),
        ("mlp", {"hidden": (16, 8)}), ("gan", {"width": 8}), ("autoencoder", {"hidden": (4, 8), "latent": 6}),
        ("tied", {"hidden": (16, 8), "latent": 6}), ("vae", {"hidden": (4, 8), "latent": 6}),
    ],
)  # fmt: skip
def test_the_width_is_the_configs_own_multiplied(name: str, settings: dict[str, object]) -> None:
    made = case(name)
    wanted = made.config.model.model_copy(update=settings)
    like = made.config.task.skeleton(made.config.model_copy(update={"model": wanted}), made.shapes)
    shapes = {key: p.shape for key, p in student(name).named_parameters()}
    prefix = "average." if name in GENERATORS else ""
    assert shapes == {
        key.removeprefix(prefix): p.shape for key, p in like.named_parameters() if key.startswith(prefix)
    }


@pytest.mark.parametrize(("name", "layer"), [("lstm", "body.layers.1"), ("mlp", "body.body.4"), ("dense", "encoder.5")])
def test_a_shallower_student_has_the_first_layers(name: str, layer: str) -> None:
    assert any(key.startswith(layer) for key in weights(student(name)))
    shallow = student(name, depth=1)
    assert not any(key.startswith(layer) for key in weights(shallow))
    made = case(name)
    assert answers(shallow, made.x())[0].shape == answers(made.model, made.x())[0].shape


def test_the_default_widths_of_an_autoencoder_are_known() -> None:
    config = CONFIGS["dense"]
    model = config.model.model_copy(update={"hidden": None})
    made = student_of(config.model_copy(update={"model": model}), case("dense").shapes, 0.5)
    assert [p.shape[0] for key, p in made.named_parameters() if "encoder" in key and p.ndim == 2] == [128, 64, 6]


def test_the_same_student_every_time_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = weights(student("cnn"))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(first, weights(student("cnn")))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_student_of_an_ensemble_is_one_model() -> None:
    made = case("cnn")
    small = student("cnn", width=1.0)
    assert not isinstance(small, Ensemble)
    tuned = distill(small, ensemble("cnn"), made.subject, SHORT)
    assert parameters(tuned) == parameters(made.model)
    config = made.config.model_copy(update={"members": 3})
    assert parameters(student_of(config, made.shapes, 1.0)) == parameters(made.model)


def test_a_student_of_the_digits_gets_near_its_teacher(
    trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    def right(model: nn.Module) -> float:
        x, y = torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test)
        return correct(model, x, y) / len(y)

    small = student_of(quick_config, trained.task.shapes, 0.5)
    config = DistillConfig(epochs=6, batch_size=32, validation=0.1, width=0.5)
    tuned = distill(small, trained.model, classify(digits), config)
    assert parameters(tuned) < 0.3 * parameters(trained.model)
    assert right(tuned) > right(trained.model) - 0.04


@pytest.mark.parametrize("name", ["cnn", "gan"])
def test_a_depth_by_design_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"depth=1: model\.kind={name} has its number of layers by design; leave it"):
        student(name, depth=1)


def test_a_student_has_no_more_layers_than_its_teacher() -> None:
    with pytest.raises(ConfigError, match="depth=3 is more than the 2 hidden layers of the trained model; lower it"):
        student("mlp", depth=3)


def test_a_linear_model_has_no_student() -> None:
    made = case("mlp")
    model = made.config.model.model_copy(update={"hidden": ()})
    with pytest.raises(ConfigError, match="no hidden layer that a student could have less of"):
        student_of(made.config.model_copy(update={"model": model}), made.shapes, 0.5)


def published(kind: str) -> TrainConfig:
    model = VisionConfig.model_validate({"kind": kind, "small": True, "norm": "batch"})
    return case("cnn").config.model_copy(update={"model": model})


@pytest.mark.parametrize(
    ("kind", "width", "depth"),
    [("resnet18", 0.25, None), ("resnet18", 1.0, 1), ("resnet50", 0.25, 1), ("mobilenet_v3", 0.5, None)],
)
def test_a_student_of_a_published_architecture_learns_and_exports(kind: str, width: float, depth: int | None) -> None:
    config, shapes = published(kind), case("cnn").shapes
    teacher = student_of(config, shapes, 1.0).eval()
    small = student_of(config, shapes, width, depth)
    assert parameters(small) < (0.6 if depth and width == 1.0 else 0.45) * parameters(teacher)
    before = weights(small)
    subject = classify(few(40))
    once = DistillConfig(epochs=1, batch_size=32, validation=0.1)
    tuned = distill(small, teacher, subject, once)
    moved = [key for key, value in weights(tuned).items() if not torch.equal(value, before[key])]
    assert len(moved) > 0.9 * len(before), "every layer is run, and learns"
    graph = to_onnx(tuned, subject.inputs, ["logits"])
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    x = subject.samples(3)
    (made,) = session.run(None, {subject.inputs.name: x})
    with torch.inference_mode():
        np.testing.assert_allclose(made, tuned(torch.from_numpy(x)), rtol=1e-3, atol=1e-3)


def test_a_published_depth_is_told() -> None:
    with pytest.raises(ConfigError, match="depth=3 is more than the 2 blocks of a stage of the trained model; lower"):
        student_of(published("resnet18"), case("cnn").shapes, 0.5, 3)
    with pytest.raises(ConfigError, match=r"model\.kind=mobilenet_v3 has its number of layers by design"):
        student_of(published("mobilenet_v3"), case("cnn").shapes, 0.5, 1)


def test_features_may_be_taught_as_well() -> None:
    made = case("cnn")
    config = SHORT.model_copy(update={"features": 1.0, "epochs": 1})
    tuned = distill(student("cnn"), made.model, classify(few()), config)
    assert weights(tuned).keys() == weights(made.model).keys()


@pytest.mark.parametrize("wrong", [{"width": 0.0}, {"width": 1.5}, {"depth": 0}, {"teacher": 2.0}, {"share": 0.5}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DistillConfig.model_validate(wrong)
