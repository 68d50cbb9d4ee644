"""One trained graph gives the same answers in every runtime that may serve it, within what its precision allows.

Logits of the digits model lie within about 20 of 0. fp32 rounds to 2^-24 of a value and executors add up in different
orders: 1e-4. An int8 activation that lies on the edge between two steps may fall to either side, and a step moves a
logit by a few tenths at most: 0.5 for the worst logit of the worst picture, a hundredth on average. bf16 keeps 8 bits:
where one runtime multiplies in bf16 and the other only holds its weights in it, 2^-8 of 20 in each of few layers: 0.5.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.runtimes import RuntimeConfig, load_runtime, runtimes_for
from cluster.runtimes.base import RuntimeName
from cluster.variants import Precision, Variant
from tests.conftest import Trained

WORST: dict[Precision, float] = {"fp32": 1e-4, "int8": 0.5, "bf16": 0.5}
MEAN: dict[Precision, float] = {"fp32": 1e-5, "int8": 0.01, "bf16": 0.05}


def logits(trained: Trained, variant: Variant, name: RuntimeName, streams: int = 1) -> NDArray[np.float32]:
    runtime = load_runtime(trained.store, variant, RuntimeConfig(name=name, streams=streams))
    try:
        return runtime.infer({"image": trained.pictures})["logits"].astype(np.float32)
    finally:
        runtime.close()


def named(trained: Trained, name: str) -> Variant:
    return trained.store.get(trained.fp32.name.replace("/fp32", f"/{name}"))


@pytest.mark.parametrize("name", ["fp32", "int8", "bf16"])
def test_runtimes_agree_on_a_variant(trained: Trained, name: str) -> None:
    variant = named(trained, name)
    runtimes = runtimes_for(variant.format)
    assert runtimes == ["onnxruntime", "openvino"]
    answers = [logits(trained, variant, runtime, streams) for runtime in runtimes for streams in (1, 2)]
    for one, other in itertools.combinations(answers, 2):
        apart = np.abs(one - other)
        assert apart.max() <= WORST[variant.precision]
        assert apart.mean() <= MEAN[variant.precision]
        assert np.mean(one.argmax(1) == other.argmax(1)) >= 0.99


def test_the_exported_graph_agrees_with_the_torch_program(trained: Trained) -> None:
    one = logits(trained, trained.torch, "torch")
    for name in runtimes_for("onnx"):
        np.testing.assert_allclose(logits(trained, trained.fp32, name), one, atol=WORST["fp32"])


@pytest.mark.parametrize("name", ["int8", "bf16"])
def test_a_smaller_precision_is_near_what_it_was_made_from(trained: Trained, name: str) -> None:
    """Near, and not the same: a graph that was left as it was would be."""
    variant = named(trained, name)
    full = logits(trained, trained.fp32, "onnxruntime")
    for runtime in runtimes_for(variant.format):
        apart = np.abs(logits(trained, variant, runtime) - full)
        assert 1e-3 < apart.max() <= 2.0
        assert apart.mean() <= 0.3
