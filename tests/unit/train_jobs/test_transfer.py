"""Weights from elsewhere: what fits is taken, what is frozen does not move, what thaws does so in order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.errors import ConfigError
from tests.unit.train_jobs.curves import frozen
from train_jobs import runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import TrainResult, train
from train_jobs.models import CNNConfig, MLPConfig, VisionConfig
from train_jobs.optim import optimizer as make_optimizer
from train_jobs.tasks import Phase
from train_jobs.transfer import Thaw, TransferConfig, find_run, load_weights

CONFIG = TrainConfig(
    recipe="transfer", dataset="digits", epochs=1, batch_size=16, lr=3e-3, validation=0.1, num_workers=1,
    transfer=TransferConfig(source="source"),
)  # fmt: skip


@pytest.fixture(scope="module")
def runs_dir(trained: TrainResult, quick_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "source").mkdir()
    runs.finish(folder / "source", quick_config, "digits", trained)
    return folder


@pytest.fixture(scope="module")
def four(few_digits: LabelledDataset) -> LabelledDataset:
    """Digits 0 to 3 alone."""
    few, test = few_digits.y_train < 4, few_digits.y_test < 4
    return replace(
        few_digits, x_train=few_digits.x_train[few], y_train=few_digits.y_train[few], x_test=few_digits.x_test[test],
        y_test=few_digits.y_test[test], labels=tuple("0123"),
    )  # fmt: skip


def with_transfer(config: TrainConfig = CONFIG, **fields: Any) -> TrainConfig:
    return config.model_copy(update={"transfer": TransferConfig(source="source", **fields)})


def test_a_run_gives_all_but_a_head_of_another_size(four: LabelledDataset, runs_dir: Path) -> None:
    source = runs.load("source", runs_dir).model.state_dict()
    torch.manual_seed(CONFIG.seed)
    model = CONFIG.task.build(CONFIG, four).model
    fresh = frozen(model.state_dict())
    assert load_weights(model, TransferConfig(source="source"), runs_dir=runs_dir) == ["head.4.weight", "head.4.bias"]
    for name, tensor in model.state_dict().items():
        given = fresh if name.startswith(("head.4.", "preprocess.")) else source
        assert torch.equal(tensor, given[name]), name
    assert not torch.equal(fresh["preprocess.scale"], source["preprocess.scale"]), "normalised by its own pictures"


@pytest.mark.parametrize(
    ("new_head", "classes_of", "fresh"),
    [(None, "digits", False), (None, "letters", True), (None, None, False), (True, "digits", True),
     (True, None, True), (False, "letters", False)],
)  # fmt: skip
def test_a_head_of_other_classes_is_not_taken_though_it_fits(
    few_digits: LabelledDataset, runs_dir: Path, new_head: bool | None, classes_of: str | None, fresh: bool
) -> None:
    model = CONFIG.task.build(CONFIG, few_digits).model
    config = TransferConfig(source="source", new_head=new_head)
    left = load_weights(model, config, runs_dir=runs_dir, classes_of=classes_of)
    assert left == (["head.4.weight", "head.4.bias"] if fresh else [])


def test_a_run_on_other_data_begins_with_a_fresh_head(few_digits: LabelledDataset, runs_dir: Path) -> None:
    other = replace(few_digits, name="others", spec="others")
    source = runs.load("source", runs_dir).model.state_dict()
    still = {"lr": 1e-12, "weight_decay": 0.0, "dataset": "others"}
    model = train(with_transfer().model_copy(update=still), other, runs_dir=runs_dir).model
    assert torch.allclose(model.state_dict()["head.1.weight"], source["head.1.weight"], atol=1e-6)
    assert not torch.allclose(model.state_dict()["head.4.weight"], source["head.4.weight"], atol=1e-3)


def test_it_learns_faster_from_there(four: LabelledDataset, runs_dir: Path) -> None:
    few = CONFIG.model_copy(update={"labels_per_class": 2, "epochs": 6, "batch_size": 4})
    begun = train(few, four, runs_dir=runs_dir).findings
    scratch = train(few.model_copy(update={"transfer": None}), four).findings
    assert begun is not None
    assert scratch is not None
    assert begun.metrics["accuracy"] > scratch.metrics["accuracy"] + 0.05


def test_frozen_weights_do_not_move(four: LabelledDataset, runs_dir: Path) -> None:
    source = runs.load("source", runs_dir).model.state_dict()
    decaying = {"weight_decay": 0.1, "optimizer": "adamw", "epochs": 2}
    after = train(with_transfer(freeze=True).model_copy(update=decaying), four, runs_dir=runs_dir).model.state_dict()
    for name, tensor in after.items():
        if not name.startswith(("head.4.", "preprocess.")):
            assert torch.equal(tensor, source[name]), name


def test_frozen_statistics_do_not_move(few_digits: LabelledDataset, tmp_path: Path) -> None:
    model = VisionConfig(kind="mobilenet_v3")
    torch.manual_seed(8)
    torch.save(model.build((1, 28, 28), (10,)).state_dict(), tmp_path / "source.pth")
    config = CONFIG.model_copy(
        update={"model": model, "transfer": TransferConfig(source=str(tmp_path / "source.pth"), freeze=True)}
    )
    given = torch.load(tmp_path / "source.pth", weights_only=True)
    after = train(config, few_digits).model.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, given[name])}
    assert moved == {"head.weight", "head.bias", "preprocess.scale", "preprocess.shift"}


def test_blocks_thaw_from_the_head_downwards(four: LabelledDataset, runs_dir: Path) -> None:
    weights: list[dict[str, torch.Tensor]] = [frozen(runs.load("source", runs_dir).model.state_dict())]
    config = with_transfer(thaw_epochs=2).model_copy(update={"epochs": 10})
    train(config, four, runs_dir=runs_dir, on_state=lambda _, state: weights.append(frozen(state["weights"])))
    moved = [
        {name.rsplit(".", 1)[0] for name in now if name.startswith(("features.", "head.1")) and
         not torch.equal(before[name], now[name])}
        for before, now in itertools.pairwise(weights)
    ]  # fmt: skip
    order = ["head.1", "features.6", "features.3", "features.0"]
    assert moved == [set(order[: epoch // 2]) for epoch in range(10)], "the head alone, then one more every two epochs"


def test_a_run_resumed_within_the_thaw_goes_on_with_what_is_awake(four: LabelledDataset, runs_dir: Path) -> None:
    config = with_transfer(thaw_epochs=1, layer_lr_decay=0.5).model_copy(update={"epochs": 4})
    states: list[dict[str, Any]] = []
    straight = train(config, four, runs_dir=runs_dir, on_state=lambda _, state: states.append(frozen(state)))
    resumed = train(config, four, runs_dir=None, resume=states[1])
    assert [row.loss for row in resumed.history] == pytest.approx([row.loss for row in straight.history], rel=1e-6)
    for name, tensor in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor)


def test_the_nearer_the_input_the_smaller_the_rate() -> None:
    config = with_transfer(layer_lr_decay=0.5)
    model = CNNConfig().build((1, 28, 28), (10,))
    groups = make_optimizer(config, Phase("train", model), Thaw(model, config.transfer)).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rates[id(next(block.parameters()))] for block in model.blocks()] == pytest.approx(
        [3e-3 * 0.5**depth for depth in (4, 3, 2, 1, 0)]
    )
    assert len(groups) == 5
    assert len(rates) == len(list(model.parameters()))


def test_a_rate_of_nearly_nothing_moves_nearly_nothing(four: LabelledDataset, runs_dir: Path) -> None:
    source = runs.load("source", runs_dir).model.state_dict()
    config = with_transfer(layer_lr_decay=1e-6).model_copy(update={"optimizer": "sgd", "lr": 0.01})
    after = train(config, four, runs_dir=runs_dir).model.state_dict()
    assert float((after["features.0.weight"] - source["features.0.weight"]).abs().max()) < 1e-6
    assert float((after["head.1.weight"] - source["head.1.weight"]).abs().max()) < 1e-3


def test_a_folder_and_a_file_of_weights_do_as_well(runs_dir: Path) -> None:
    source = runs.load("source", runs_dir).model.state_dict()
    for name in (str(runs_dir / "source"), str(runs_dir / "source/model.safetensors")):
        model = CNNConfig().build((1, 28, 28), (10,))
        assert load_weights(model, TransferConfig(source=name), runs_dir=None) == []
        assert torch.equal(model.state_dict()["head.1.weight"], source["head.1.weight"])


def test_sources_that_do_not_do_are_named_with_the_way_out(runs_dir: Path, tmp_path: Path) -> None:
    model = CNNConfig(width=0.25).build((1, 28, 28), (10,))

    def load(source: str, into: nn.Module = model) -> None:
        load_weights(into, TransferConfig(source=source), runs_dir=runs_dir)

    with pytest.raises(ConfigError, match=r"there is no finished run 'nobody' .*train it first: sluice train"):
        load("nobody")
    with pytest.raises(ConfigError, match=r"'source' holds no weight of this model's shapes; take a run with the same"):
        load("source", MLPConfig(hidden=(7,)).build((1, 28, 28), (10,)))
    with pytest.raises(ConfigError, match=r"torchvision has weights for resnet18, resnet50 and mobilenet_v3 only"):
        load("torchvision")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for file, told in (("missing.pth", "holds no weights"), ("broken.pth", "holds no weights"),
                       ("list.pth", "is no dictionary of weights; save a state_dict")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            load(str(tmp_path / file))


def test_runs_are_found_by_path_and_by_name(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs_dir)
    assert find_run("source", None) == Path("source")
    monkeypatch.chdir("/")
    assert find_run("source", runs_dir) == find_run(str(runs_dir / "source"), None) == runs_dir / "source"
