"""The IDX format of MNIST and its kin: big-endian magic, sizes, raw bytes; gzipped on disk."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataUnavailable

_MOST_DIMENSIONS = 4


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The uint8 array in `path`. Raises DataUnavailable naming what is wrong with the file."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnavailable(f"{path} cannot be read ({error}); fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataUnavailable(f"{path} starts with {data[:4].hex()}, not with the IDX magic 000008xx; fetch it again")
    dimensions = data[3]
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:header]) if len(data) >= header else ()
    if dimensions > _MOST_DIMENSIONS or len(data) - header != math.prod(shape):
        raise DataUnavailable(f"{path} says shape {shape} and holds {len(data) - header} bytes; fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape).copy()
