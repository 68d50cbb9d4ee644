"""TrainConfig: overrides with errors that name the field, and which runs may go on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import ConfigError
from train_jobs.config import TrainConfig
from train_jobs.models import CNNConfig, MLPConfig
from train_jobs.recipes.pictures import cnn_digits, cnn_fashion_mnist


def test_overrides_are_typed_by_their_field() -> None:
    config = cnn_fashion_mnist().with_overrides(
        ["epochs=3", "lr=1e-2", "flip=false", "patience=", "dataset=mnist", "num_workers=1", "model.dropout=0.4"]
    )
    assert config.model == CNNConfig(dropout=0.4)
    assert (config.epochs, config.lr, config.flip, config.patience) == (3, 0.01, False, None)
    assert (config.dataset, config.num_workers, config.batch_size) == ("mnist", 1, cnn_fashion_mnist().batch_size)


@given(st.integers(1, 10**6), st.floats(1e-8, 1e3))
def test_any_number_comes_through_as_it_was_written(epochs: int, lr: float) -> None:
    config = cnn_digits().with_overrides([f"epochs={epochs}", f"lr={lr}"])
    assert (config.epochs, config.lr) == (epochs, lr)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", r"override 'epochs' is no field=value; fields: .*epochs.*lr"),
        ("epoch=3", r"override 'epoch=3' is no field=value; fields: .*epochs"),
        ("epochs=0", r"epochs=0 is not allowed: .*greater than or equal to 1"),
        ("epochs=two", r"epochs='two' is not allowed: .*valid integer"),
        ("lr=-1", r"lr=-1 is not allowed: .*greater than 0"),
        ("lr=nan", r"lr='nan' is not allowed: .*finite"),
        ("lr=.inf", r"lr=inf is not allowed: .*finite"),
        ("lr=[", r"override 'lr=\[' has no readable value; write it as in YAML"),
        ("model.width=0", r"model.cnn.width=0 is not allowed: .*greater than 0"),
        ("model.kind=transformer", r"model=.* is not allowed: .*'cnn', 'mlp'"),
        ("model.depth=3", r"model.cnn.depth=3 is not allowed: Extra inputs"),
        ("lr.x=3", r"override 'lr.x=3': lr has no fields of its own"),
        ("model.kind=gan", r"model.kind=gan does not do task.kind=classify, which takes cnn, "),
        ("num_workers=[3, 2]", r"num_workers=\(3, 2\) must be 1 or more, or \[least, most\]"),
        ("warmup_epochs=1", r"warmup_epochs=1.0: one_cycle has a warm-up of its own"),
        ("snapshots=3", r"snapshots=3 needs schedule=cosine"),
        ("average=swa", r"average=swa needs a rate that does not end at nothing"),
        ("optimizer=rmsprop", r"optimizer='rmsprop' is not allowed: .*'adam'"),
        ("validation=0.5", r"validation=0.5 is not allowed: .*less than 0.5"),
        ("seed=-1", r"seed=-1 is not allowed"),
        ("recipe=a/b", r"recipe='a/b' is not allowed"),
        ("num_workers=100", r"batch_size=32 leaves some of num_workers=100 without work; see --set"),
    ],
)
def test_a_bad_override_says_what_is_wrong_with_it(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cnn_digits().with_overrides([override])


def test_another_kind_begins_with_its_own_defaults() -> None:
    config = cnn_digits().with_overrides(["model.dropout=0.5", "model.kind=mlp", "model.hidden=[32]"])
    assert config.model == MLPConfig(hidden=(32,))
    assert config.model.family == "mlp"


def test_ways_to_make_the_final_model_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="snapshots and members each make the final model in their own way"):
        cnn_digits().with_overrides(["schedule=cosine", "snapshots=3", "members=3"])


def test_members_differ_by_their_seed_alone() -> None:
    config = cnn_digits().with_overrides(["members=3", "seed=5"])
    assert config.member(2) == cnn_digits().with_overrides(["seed=7"])


def test_an_unknown_field_in_a_file_is_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        TrainConfig.model_validate({"recipe": "x", "learning_rate": 0.1})


def test_a_run_goes_on_with_more_or_fewer_workers_and_nothing_else_changed() -> None:
    config = cnn_digits()
    config.with_overrides(["num_workers=4"]).require_same_run(config.model_dump(mode="json"), where="run 'a'")
    with pytest.raises(ConfigError) as caught:
        config.with_overrides(["lr=0.5", "epochs=99"]).require_same_run(config.model_dump(mode="json"), where="run 'a'")
    assert "run 'a' was started with epochs=15, lr=0.003, now it is epochs=99, lr=0.5" in str(caught.value)
    with pytest.raises(ConfigError, match=r"was started with model.width=1.0, now it is model.width=2.0"):
        config.with_overrides(["model.width=2"]).require_same_run(config.model_dump(mode="json"), where="run 'a'")
    assert "--run" in str(caught.value)
