"""A folder of pictures -> LabelledDataset: train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg to be split.

Classes are the names of the folders in sorted order, as torchvision's ImageFolder counts them. Pictures become uint8
(N, C, H, W) and must have one size, unless the spec names one: `pictures?size=64x48` (width x height) resizes all. The
first picture decides between grayscale (C=1) and colour (C=3), unless the spec does: `pictures?mode=RGB`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import numpy as np
import psutil
from numpy.typing import NDArray

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets.labelled import LabelledDataset, Notify, of_arrays

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
Mode = Literal["L", "RGB"]
_MODES: dict[str, Mode] = {"L": "L", "RGB": "RGB"}
_GRAY = {"1", "L", "LA"}
_COLOUR = {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


@dataclass(frozen=True)
class Look:
    """What every picture is brought to; None: what the first one has."""

    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    mode: Mode | None = None

    @classmethod
    def parse(cls, query: str) -> Look:
        """Of "size=64x64&mode=RGB". Raises ConfigError for anything else."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        size = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", given.pop("size", "1x1"))
        mode = given.pop("mode", None)
        if size is None or mode not in (None, *_MODES) or given or not query:
            raise ConfigError(f"?{query} after a folder of pictures is not understood; write ?size=64x64 or ?mode=RGB")
        return cls(size=(int(size[1]), int(size[2])) if "size=" in query else None, mode=_MODES.get(mode or ""))

    def __str__(self) -> str:
        size = f"size={self.size[0]}x{self.size[1]}" if self.size else ""
        return "&".join(part for part in (size, f"mode={self.mode}" if self.mode else "") if part)


def from_folder(root: Path, look: Look, *, notify: Notify | None) -> LabelledDataset:
    """Raises ConfigError naming the picture that differs or the class that is empty, DataUnavailable for a file that is
    no picture."""
    files = _files(root)
    labels = sorted({label for part in files.values() for label, _ in part})
    numbers = {label: number for number, label in enumerate(labels)}
    every = [path for part in files.values() for _, path in part]
    pictures = _read(every, look)
    arrays: dict[str, Any] = {"labels": labels}
    start = 0
    for part, rows in files.items():
        suffix = f"_{part}" if part else ""
        arrays[f"x{suffix}"] = pictures[start : start + len(rows)]
        arrays[f"y{suffix}"] = np.array([numbers[label] for label, _ in rows], dtype=np.int64)
        start += len(rows)
    query = str(look)
    spec = f"{root.resolve()}?{query}" if query else str(root.resolve())
    return of_arrays(arrays, name=root.resolve().name, source=str(root), spec=spec, notify=notify)


def _files(root: Path) -> dict[str, list[tuple[str, Path]]]:
    """(class, file) in order by part: "train" and "test", or "" where there are no splits. `val` belongs to training:
    who fine-tunes sets samples aside on their own."""
    names = {folder.name for folder in _folders(root)}
    if not names & {"train", "test"}:
        return {"": list(_labelled(root))}
    if lacking := {"train", "test"} - names:
        raise ConfigError(
            f"{root} has a folder {', '.join(sorted(names))} and no {lacking.pop()}; give train/CLASS/*.jpg and "
            "test/CLASS/*.jpg, or CLASS/*.jpg alone to be split"
        )
    if strange := names - {"train", "val", "test"}:
        raise ConfigError(f"{root} has {min(strange)} beside train and test; splits are train, val and test")
    parts = {name: list(_labelled(root / name)) for name in sorted(names)}
    return {"train": parts["train"] + parts.get("val", []), "test": parts["test"]}


def _labelled(folder: Path) -> Iterator[tuple[str, Path]]:
    classes = _folders(folder)
    if not classes:
        raise ConfigError(f"{folder} has no folder for each class; put the pictures into {folder}/CLASS/")
    for each in classes:
        pictures = sorted(p for p in each.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not pictures:
            raise ConfigError(f"{each} holds no pictures ({', '.join(sorted(SUFFIXES))}); add some or remove it")
        for path in pictures:
            yield each.name, path


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith((".", "_")))


def _read(paths: list[Path], look: Look) -> NDArray[np.uint8]:
    """uint8 (N, C, H, W)."""
    first = _picture(paths[0])
    size = look.size or first.size
    mode: Mode = look.mode or ("L" if first.mode in _GRAY else "RGB")
    pictures_NHWC = _room(len(paths), size, mode)
    for index, path in enumerate(paths):
        picture = _picture(path)
        if look.size is None and picture.size != size:
            raise ConfigError(
                f"{path} has {picture.size[0]}x{picture.size[1]} pixels and {paths[0]} {size[0]}x{size[1]}; name one "
                f"size for all: ?size={size[0]}x{size[1]} after the folder"
            )
        if look.mode is None and mode == "L" and picture.mode not in _GRAY:
            raise ConfigError(
                f"{path} has colours and {paths[0]} has none; say what the model takes: ?mode=RGB or ?mode=L after the "
                "folder"
            )
        pictures_NHWC[index] = _pixels(picture, size, mode)
    return pictures_NHWC.transpose(0, 3, 1, 2)


def _room(count: int, size: tuple[int, int], mode: Mode) -> NDArray[np.uint8]:
    shape = (count, size[1], size[0], 1 if mode == "L" else 3)
    needed, free = int(np.prod(shape, dtype=np.int64)), psutil.virtual_memory().available
    if needed > free // 2:
        raise ConfigError(
            f"{count:,} pictures of {size[0]}x{size[1]} are {needed >> 20:,} MiB, and {free >> 20:,} MiB of memory are "
            "free; take fewer, or smaller ones: ?size=64x64"
        )
    return np.empty(shape, dtype=np.uint8)


def _pixels(picture: Any, size: tuple[int, int], mode: Mode) -> NDArray[np.uint8]:
    """uint8 (H, W, C)."""
    from PIL import Image

    converted = picture.convert(mode)
    if converted.size != size:
        converted = converted.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(converted, dtype=np.uint8).reshape(size[1], size[0], -1)


def _picture(path: Path) -> Any:
    """A PIL image, its pixels read, upright: a camera's pictures lie on their side and say so in Exif. Whoever serves
    the model turns them as well (serve_apps/images.py)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            opened.load()
            picture: Image.Image = opened
        with suppress(Exception):  # Exif that cannot be read says nothing
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow's decoders raise what they like on a broken file
        raise DataUnavailable(f"{path} is no picture that can be read ({error}); mend it or remove it") from error
    if picture.mode not in _GRAY | _COLOUR:
        raise ConfigError(
            f"{path} has pixels of kind {picture.mode}, more than the 8 bits a channel that pictures are loaded with; "
            "convert it, or bring arrays (.npz)"
        )
    return picture
