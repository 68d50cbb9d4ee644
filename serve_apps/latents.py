"""Seeds in the place of latents: a generator's client says which samples it wants, and gets the same ones every time.

What a seed stands for is cluster/latents.py's to say, for the server, tests and whoever runs a graph by himself.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest, PayloadTooLarge
from cluster.latents import of_seeds
from cluster.tensors import check_inputs
from cluster.variants import TensorSpec, Variant

Arrays = dict[str, NDArray[np.generic]]
SEED = TensorSpec(name="seed", datatype="INT64", shape=(-1,))
MAX_NUMBERS = 1 << 16
"""Drawn for one request: it holds the event loop for some 10 ms."""


class Latents:
    """Of one model: its first and only input, rows of numbers from the standard normal distribution."""

    seed = SEED

    def __init__(self, spec: TensorSpec) -> None:
        self._spec, self._size = spec, math.prod(spec.shape[1:])

    @classmethod
    def of(cls, variant: Variant) -> Latents | None:
        """None if a variant's input is no draw from anything, or is called as a seed would be."""
        if variant.prior is None or variant.inputs[0].name == SEED.name:
            return None
        return cls(variant.inputs[0])

    def check(self, inputs: Arrays) -> bool:
        """Are these seeds? Raises InvalidRequest for seeds that are none, or stand beside what they stand for."""
        if self._spec.name in inputs and SEED.name not in inputs:
            return False
        if SEED.name not in inputs:
            raise InvalidRequest(
                f"the model takes {self._spec.name!r}, {self._spec.datatype} {list(self._spec.shape)}, or in its place "
                f"'seed', INT64 [-1]; the request has {sorted(inputs)}"
            )
        if len(inputs) > 1:
            others = sorted(inputs.keys() - {SEED.name})
            raise InvalidRequest(
                f"input 'seed' stands in the place of {self._spec.name!r}, and {others} came with it; send one of them"
            )
        check_inputs((SEED,), inputs)
        rows = len(inputs[SEED.name])
        if rows * self._size > MAX_NUMBERS:
            raise PayloadTooLarge(
                f"input 'seed' has {rows} seeds of {self._size} numbers each; at most {MAX_NUMBERS // self._size} are "
                f"taken: send fewer at once, or {self._spec.name!r} itself"
            )
        return True

    def filled(self, inputs: Arrays) -> Arrays:
        """With latents where seeds were."""
        seeds = inputs.get(SEED.name)
        if seeds is None:
            return inputs
        drawn = of_seeds(seeds.astype(np.int64, copy=False), self._size)
        return {self._spec.name: drawn.reshape(len(drawn), *self._spec.shape[1:])}
