"""Variant + RuntimeConfig -> Runtime: the one door between a stored graph and numbers.

Training evaluates a variant through the same Runtime that will serve it, so an accuracy figure is never of
another executor. A Runtime is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Tensors = Mapping[str, NDArray[np.generic]]
RuntimeName = Literal["torch", "onnxruntime"]


class RuntimeConfig(BaseModel):
    """How to execute a variant. Threads are an explicit field: the defaults of the libraries fight each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RuntimeName = "onnxruntime"
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads inside one operator (intra-op)."""


class Runtime(Protocol):
    """Two methods and two facts; see tests/contracts/runtime_contract.py for what every one must do."""

    name: str
    config: RuntimeConfig

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """Run one batch. Shapes and datatypes are the variant's TensorSpecs; the arrays returned are owned by the
        caller, those given are left as they were. Raises InvalidRequest for a missing, extra or mis-shaped tensor and
        InferenceFailed if the executor itself raises or is closed; after both it can be used as before."""
        ...

    def close(self) -> None:
        """Free the executor; a second call does nothing."""
        ...
