"""Real photographs in every form that a client may send: the two that scikit-learn ships."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


@cache
def photograph(number: int = 0, size: tuple[int, int] | None = None) -> Image.Image:
    """640x427, in colour; or at another size."""
    picture = Image.fromarray(load_sample_images().images[number])
    return picture.resize(size, Image.Resampling.LANCZOS) if size else picture


def encoded(picture: Image.Image, kind: str = "JPEG", *, orientation: int | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    picture.save(file, kind, **options)
    return file.getvalue()


@cache
def twelve_megapixels(number: int = 0, **options: Any) -> bytes:
    """4000x3000, with the noise that a sensor adds: the upscaled photograph alone would have no detail."""
    picture = np.asarray(photograph(number, (4000, 3000)), dtype=np.int16)
    noise = np.random.default_rng(0).normal(0, 8, picture.shape).astype(np.int16)
    return encoded(Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8)), quality=90, **options)
