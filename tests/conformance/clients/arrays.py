"""Known inputs and outputs, for the clients whose environments have numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import Checks

Arrays = dict[str, np.ndarray]


def known(checks: Checks) -> tuple[Arrays, Arrays]:
    """(inputs, outputs) by name."""
    with np.load(checks.known) as file:
        arrays = {name: file[name].astype(object) if file[name].dtype.kind == "S" else file[name] for name in file}
    return ({name[3:]: array for name, array in arrays.items() if name.startswith("in/")},
            {name[4:]: array for name, array in arrays.items() if name.startswith("out/")})  # fmt: skip


def datatype(array: np.ndarray) -> str:
    """The protocol's name of its elements."""
    if array.dtype == object:
        return "BYTES"
    kinds = {"b": "BOOL", "u": "UINT", "i": "INT", "f": "FP"}
    return kinds[array.dtype.kind] + ("" if array.dtype.kind == "b" else str(8 * array.dtype.itemsize))


def check(got: Any, want: np.ndarray) -> None:
    """Raises AssertionError unless every element came, in its place, of its type."""
    assert got is not None, "the output is not there"
    array = np.asarray(got)
    if want.dtype == object:
        array = np.array([x.encode() if isinstance(x, str) else bytes(x) for x in array.ravel()], object).reshape(
            array.shape
        )
    else:
        assert array.dtype == want.dtype, f"{array.dtype} came for {want.dtype}"
    assert array.shape == want.shape, f"shape {array.shape} came for {want.shape}"
    assert (array == want).all(), f"{array.tolist()} came for {want.tolist()}"[:200]
