"""The IDX format: what numpy wrote is read back, whatever the shape; anything else is refused by name."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cluster.errors import DataUnavailable
from train_jobs.datasets.idx import read_idx


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """The format as the MNIST page describes it: two zero bytes, 0x08 for bytes, the sizes, the bytes."""
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(idx_bytes(array), compresslevel=1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)))
def test_read_is_the_inverse_of_the_format(tmp_path: Path, array: NDArray[np.uint8]) -> None:
    write_idx(tmp_path / "a.gz", array)
    assert np.array_equal(read_idx(tmp_path / "a.gz"), array)


def test_the_array_is_writable_and_owns_its_bytes(tmp_path: Path) -> None:
    write_idx(tmp_path / "a.gz", np.zeros((2, 3), dtype=np.uint8))
    array = read_idx(tmp_path / "a.gz")
    array[0, 0] = 7
    assert array.flags.owndata or array.base is None or array.base.flags.writeable


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=40) | st.builds(lambda tail: b"\x00\x00\x08" + tail, st.binary(max_size=20)))
def test_arbitrary_content_is_an_array_or_refused_never_a_crash(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    is_idx = content[:3] == b"\x00\x00\x08" and len(content) >= 4 and len(content) >= 4 + 4 * content[3]
    if is_idx and len(content) == 4 + 4 * content[3] + math.prod(struct.unpack_from(f">{content[3]}I", content, 4)):
        assert read_idx(tmp_path / "a.gz").ndim == content[3]
        return
    with pytest.raises(DataUnavailable, match=r"a\.gz .*fetch it again"):
        read_idx(tmp_path / "a.gz")


GOOD = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))


def packed(content: bytes) -> bytes:
    """The same bytes at any second: they name the tests, and two workers must find tests of the same names."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip at all", "cannot be read"),
        (b"", "cannot be read|starts with"),
        (packed(GOOD)[:-9], "cannot be read"),
        (packed(GOOD)[:12] + b"\xff" * 8 + packed(GOOD)[20:], "cannot be read"),
        (packed(GOOD[:-1]), r"says shape \(2, 3\) and holds 5 bytes"),
        (packed(GOOD + b"\x00"), r"says shape \(2, 3\) and holds 7 bytes"),
        (packed(GOOD[:6]), "says shape"),
        (packed(b"\x00\x00\x0d\x01" + GOOD[4:]), "starts with 00000d01, not with the IDX magic 000008xx"),
        (packed(b"\x00"), "starts with 00, not with"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken.gz").write_bytes(content)
    with pytest.raises(DataUnavailable, match=message) as caught:
        read_idx(tmp_path / "broken.gz")
    assert "broken.gz" in str(caught.value)
