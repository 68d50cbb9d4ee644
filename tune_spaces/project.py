"""`sluice init FOLDER` -> an example project that runs as it is: a model, data, an SLO and the commands to use them.

The files are those in tune_spaces/example; an installed Sluice carries them as package data.
"""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

from cluster.errors import ConfigError

FILES = ("README.md", "my_model.py", "slo.yaml")


def init(*, folder: Path, force: bool) -> None:
    """Write the project into `folder`, which is made if it is not there.

    Raises ConfigError, before anything is written, if one of its files is there and `force` is not set.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        raise ConfigError(
            f"{folder} has {', '.join(there)} already; name another folder, or pass --force to write over them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    example = resources.files("tune_spaces") / "example"
    for name in FILES:
        (folder / name).write_text((example / name).read_text(encoding="utf-8"), encoding="utf-8")
    print(f"wrote {', '.join(FILES)} into {folder}; next:\n")
    print(f"  cd {shlex.quote(str(folder))}")
    print("  sluice tune --model my_model:model --data my_model:dataset --slo slo.yaml --study first")
