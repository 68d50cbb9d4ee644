"""What every peer is given, and how it says what it made. Runs in the peers' own environments: standard library, NumPy.

    given/model.onnx      the trained classifier, fp32
          weights.npz     its weights by name, for torch (cnn.py)
          data.npz        x_train, y_train, x_validation, y_validation: the training part, cut in two
    out/made.json         an entry for each way that was tried, written after each: whoever is stopped keeps the others
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION = 512
"""Pictures that calibrate, as many as ours takes by default."""
MAX_DROP = 0.005
RESERVED_S = 15.0
"""Of a peer's time, for what comes after its longest part."""


@dataclass(frozen=True)
class Given:
    """The files, read."""

    onnx: Path
    weights: Path
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_validation: NDArray[np.uint8]
    y_validation: NDArray[np.int64]
    ends: float = float("inf")
    """When its time is over, as time.time() has it."""

    @property
    def left_s(self) -> float:
        return self.ends - time.time()

    @property
    def x_calibration(self) -> NDArray[np.uint8]:
        return self.x_train[:CALIBRATION]


Way = Callable[[Given, Path], Path]
"""Makes a model below a folder of its own, and says where its main file is."""


def read(folder: Path, ends: float = float("inf")) -> Given:
    """The given of one folder."""
    with np.load(folder / "data.npz") as data:
        arrays = {name: data[name] for name in data.files}
    return Given(folder / "model.onnx", folder / "weights.npz", **arrays, ends=ends)


def one_line(error: BaseException) -> str:
    """What it is and says, without line breaks and without the paths of one machine."""
    told = " ".join(f"{type(error).__name__}: {error}".split())
    for path, name in ((sys.prefix, "VENV"), (str(Path.cwd()), "."), (str(Path.home()), "~")):
        if len(path) > 1:
            told = told.replace(path, name)
    return told[:300]


def try_all(ways: Mapping[str, Way]) -> None:
    """The body of a peer: argv is GIVEN OUT STARTED SECONDS, the last two being when its time began and how long it is.
    """
    given_dir, out, started, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    made: list[dict[str, Any]] = []
    for name, way in ways.items():
        begun = time.time()
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        row: dict[str, Any] = {"name": name, "does": " ".join((way.__doc__ or "").split())}
        try:
            row["file"] = str(way(read(given_dir, started + seconds), folder).relative_to(out))
        except Exception as error:
            row["error"] = one_line(error)
            traceback.print_exc()
        row |= {"seconds": time.time() - begun, "at_s": time.time() - started}
        made.append(row)
        unfinished = out / f".made.json.{os.getpid()}"
        unfinished.write_text(json.dumps(made, indent=1))
        unfinished.replace(out / "made.json")
        print(row, flush=True)
