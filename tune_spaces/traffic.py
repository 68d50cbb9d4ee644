"""Pictures -> prebuilt requests for the load generator, and the proof that the answers are right.

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
from cluster.runtimes import load_runtime
from cluster.variants import Variant
from serve_apps.oip.codec import decode_response, encode_request
from tune_spaces.profiler import runtime_config_of

Pictures = NDArray[np.uint8]

_DISTINCT = 64
"""Different request bodies in a load: enough that no cache of one answer could look fast."""


def classifier_target(host: str, port: int, model_name: str, pictures: Pictures) -> Target:
    """One picture (1, C, H, W) a request, binary tensors in and out, to an Open Inference Protocol server."""
    requests = []
    for picture in pictures[:_DISTINCT]:
        body, headers = encode_request({"image": picture[None]}, binary=True, binary_output=True)
        requests.append(build_request("POST", f"/v2/models/{model_name}/infer", f"{host}:{port}", headers, body))
    return Target(host=host, port=port, requests=requests, expect=[b'"outputs"'] * len(requests))


def stock_target(host: str, port: int, pictures: Pictures) -> Target:
    """The same pictures as JSON, the baseline's only language."""
    requests = []
    for picture in pictures[:_DISTINCT]:
        body, headers = encode_request({"image": picture[None]}, binary=False)
        requests.append(build_request("POST", "/", f"{host}:{port}", headers, body))
    return Target(host=host, port=port, requests=requests, expect=[b'"outputs"'] * len(requests))


def _ask(client: httpx.Client, target: Target, request: bytes) -> NDArray[np.generic]:
    """Send one prebuilt request through an ordinary client and return its logits."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    answer = client.request(method, f"http://{target.host}:{target.port}{path}", headers=headers, content=body)
    if answer.status_code != 200:
        raise InferenceFailed(f"{method} {path} answered {answer.status_code}: {answer.text[:200]}")
    if "inference-header-content-length" in answer.headers:
        return decode_response(answer.content, dict(answer.headers))["logits"]
    output = orjson.loads(answer.content)["outputs"][0]
    return np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])


def check_answers(store: ArtifactStore, variant: Variant, target: Target, pictures: Pictures) -> None:
    """Every distinct request must be answered as the variant answers in this process.

    Raises InferenceFailed naming the first picture whose logits are further than 1e-3 away.
    """
    runtime = load_runtime(store, variant, runtime_config_of(variant))
    try:
        expected = runtime.infer({"image": pictures[: len(target.requests)]})["logits"]
    finally:
        runtime.close()
    with httpx.Client(timeout=10.0) as client:
        for index, request in enumerate(target.requests):
            logits = _ask(client, target, request)
            # A quantized graph may differ by a rounding step with the batch it was computed in; a label may not move
            # unless the two best classes tie.
            if not np.allclose(logits[0], expected[index], atol=1e-3, rtol=1e-3):
                raise InferenceFailed(
                    f"picture {index}: {target.host}:{target.port} answered {np.round(logits[0], 3).tolist()}, the "
                    f"variant {variant.name} itself {np.round(expected[index], 3).tolist()}"
                )
