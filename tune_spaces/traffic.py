"""Samples -> prebuilt requests for the load generator, and the proof that the answers are right.

The generator is blind to model and protocol; this module is where both are known.
"""

from __future__ import annotations

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed
from cluster.load import Target, build_request
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.tensors import check_inputs
from cluster.variants import Variant
from serve_apps.oip.codec import decode_response, encode_request

Array = NDArray[np.generic]

_DISTINCT = 64
"""Different request bodies in a load: enough that no cache of one answer could look fast."""
_CLOSE = 1e-3


def target_of(host: str, port: int, model_name: str, variant: Variant, samples: Array) -> Target:
    """One sample (1, ...) a request, binary tensors in and out, to an Open Inference Protocol server.

    Raises InvalidRequest if `variant` does not take `samples` (N, ...).
    """
    entry = variant.inputs[0].name
    requests = []
    for sample in samples[:_DISTINCT]:
        inputs = {entry: sample[None]}
        check_inputs(variant.inputs, inputs)
        body, headers = encode_request(inputs, binary=True, binary_output=True)
        requests.append(build_request("POST", f"/v2/models/{model_name}/infer", f"{host}:{port}", headers, body))
    return Target(host=host, port=port, requests=requests, expect=[b'"outputs"'] * len(requests))


def stock_target(host: str, port: int, samples: Array) -> Target:
    """The same samples as JSON, the baseline's only language; it reads the first tensor, whatever its name."""
    requests = []
    for sample in samples[:_DISTINCT]:
        body, headers = encode_request({"image": sample[None]}, binary=False)
        requests.append(build_request("POST", "/", f"{host}:{port}", headers, body))
    return Target(host=host, port=port, requests=requests, expect=[b'"outputs"'] * len(requests))


def check_answers(
    store: ArtifactStore, variant: Variant, target: Target, samples: Array, config: RuntimeConfig
) -> None:
    """Every distinct request of `target` must be answered as the variant answers in this process, in the runtime that
    `config` says.

    Raises InferenceFailed naming the first sample whose scores are further than a thousandth away.
    """
    entry, output = variant.inputs[0].name, variant.outputs[0].name
    runtime = load_runtime(store, variant, config)
    try:
        # One by one, as the server gets them here: what is not fp32 may differ by a rounding step with its batch.
        expected = [runtime.infer({entry: samples[i : i + 1]})[output][0] for i in range(len(target.requests))]
    finally:
        runtime.close()
    near = _CLOSE * float(np.abs(expected).max())
    with httpx.Client(timeout=10.0) as client:
        for index, request in enumerate(target.requests):
            scores, right = _ask(client, target, request, output)[0], expected[index]
            if scores.shape != right.shape or not np.allclose(scores, right, atol=near, rtol=_CLOSE):
                raise InferenceFailed(
                    f"sample {index}: {target.host}:{target.port} answered {_brief(scores)}, the variant "
                    f"{variant.name} itself on {config} {_brief(right)}"
                )


def _ask(client: httpx.Client, target: Target, request: bytes, output: str) -> Array:
    """Send one prebuilt request through an ordinary client and return its scores."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    answer = client.request(method, f"http://{target.host}:{target.port}{path}", headers=headers, content=body)
    if answer.status_code != 200:
        raise InferenceFailed(f"{method} {path} answered {answer.status_code}: {answer.text[:200]}")
    if "inference-header-content-length" in answer.headers:
        tensors = decode_response(answer.content, dict(answer.headers))
        if output not in tensors:
            raise InferenceFailed(f"{method} {path} answered outputs {sorted(tensors)}, not {output!r}")
        return tensors[output]
    tensor = orjson.loads(answer.content)["outputs"][0]
    return np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"])


def _brief(scores: Array) -> str:
    """Ten scores are shown, of a thousand the first ten."""
    return f"{np.round(scores[:10].astype(float), 3).tolist()}{', ...' if len(scores) > 10 else ''}"
