"""Recipes are valid configs under their own names, and a stand-in keeps what the user set."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from train_jobs import recipes
from train_jobs.config import TrainConfig


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_a_recipe_is_a_valid_config_of_its_own_name(name: str) -> None:
    config = recipes.recipe(name)
    assert config.recipe == name
    assert TrainConfig.model_validate(config.model_dump()) == config, "model_copy skips validation: check it here"
    assert recipes.RECIPES[name].__doc__


def test_the_issue_s_recipes_train_on_two_workers_as_it_says() -> None:
    mnist = recipes.recipe("cnn_mnist")
    assert (mnist.optimizer, mnist.batch_size, mnist.epochs, mnist.num_workers) == ("adam", 64, 10, 2)
    fashion = recipes.recipe("cnn_fashion_mnist")
    assert (fashion.dataset, fashion.num_workers) == ("fashion-mnist", 2)
    assert fashion.patience is not None


def test_an_unknown_recipe_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"recipe='resnet' is unknown; recipes: ae_.*cnn_digits, cnn_fashion_mnist"):
        recipes.recipe("resnet")


def test_on_the_digits_the_users_own_settings_stay() -> None:
    asked = recipes.recipe("cnn_fashion_mnist").with_overrides(["epochs=2", "seed=5", "num_workers=1"])
    config = recipes.on_dataset(asked, "digits")
    assert (config.recipe, config.dataset) == ("cnn_digits", "digits")
    assert (config.epochs, config.seed, config.num_workers) == (2, 5, 1)
    untouched = recipes.on_dataset(recipes.recipe("cnn_fashion_mnist"), "digits")
    assert untouched == recipes.cnn_digits(), "nothing of a recipe for clothes (mirroring!) is used on digits"


def test_a_stand_in_stays_what_it_is_whatever_was_asked_for() -> None:
    asked = recipes.recipe("cnn_fashion_mnist").with_overrides(["dataset=mnist", "epochs=2"])
    stand_in = recipes.on_dataset(asked, "digits")
    assert (stand_in.dataset, stand_in.epochs) == ("digits", 2)
