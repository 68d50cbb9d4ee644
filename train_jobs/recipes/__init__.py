"""Named runs: each a function that returns a TrainConfig, one file for each kind of work.

Every public function of these modules is a recipe. Derive one from another with `model_copy(update=...)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from cluster.errors import ConfigError
from train_jobs.config import TrainConfig
from train_jobs.recipes import generative, learning, pictures, sequences
from train_jobs.recipes.pictures import cnn_digits
from train_jobs.tasks import MultiTaskConfig

_FILES = (pictures, learning, sequences, generative)

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    name: function
    for file in _FILES
    for name, function in vars(file).items()
    if inspect.isfunction(function) and function.__module__ == file.__name__ and not name.startswith("_")
}


def recipe(name: str) -> TrainConfig:
    """The config of a recipe. Raises ConfigError listing the names there are."""
    if name not in RECIPES:
        raise ConfigError(f"recipe={name!r} is unknown; recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


def on_dataset(config: TrainConfig, dataset: str) -> TrainConfig:
    """What to train when the embedded `dataset` had to stand in for the config's own.

    A plain CNN becomes cnn_digits, which needs other settings; any other recipe stays what it is, under a name that
    says so, without what digits do not have: departments. What the user changed in the recipe stays changed.
    """
    before = RECIPES[config.recipe]()
    if dataset == "digits" and _plain(before):
        changed = {key: value for key, value in config if key != "dataset" and value != getattr(before, key)}
        return cnn_digits().model_copy(update=changed)
    changes: dict[str, object] = {"recipe": f"{config.recipe}_on_{dataset}", "dataset": dataset}
    if isinstance(config.task, MultiTaskConfig):
        heads = tuple(head for head in config.task.heads if head != "department")
        changes["task"] = config.task.model_copy(update={"heads": heads})
    return config.model_copy(update=changes)


def _plain(config: TrainConfig) -> bool:
    """A CNN that classifies, by no further trick."""
    tricks = (config.transfer is not None, config.average != "none", config.ensemble_size > 1)
    return config.model.kind == "cnn" and config.task.kind == "classify" and not any(tricks)
