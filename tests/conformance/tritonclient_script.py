"""Runs in tritonclient's own environment: infer over HTTP with JSON and with binary tensors, print what came back.

argv: host:port, model name, path of an .npz with `image` and the expected `logits`.
"""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

url, model, path = sys.argv[1:]
known = np.load(path)
client = triton.InferenceServerClient(url)
report = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready(model),
    "metadata": client.get_model_metadata(model),
}


def infer(binary_in: bool, binary_out: bool, **options: object) -> triton.InferResult:
    tensor = triton.InferInput("image", list(known["image"].shape), "UINT8")
    tensor.set_data_from_numpy(known["image"], binary_data=binary_in)
    wanted = triton.InferRequestedOutput("logits", binary_data=binary_out)
    return client.infer(model, [tensor], outputs=[wanted], **options)


for binary_in in (False, True):
    for binary_out in (False, True):
        answer = infer(binary_in, binary_out, request_id="r1", priority=1, timeout=5_000_000)
        logits = answer.as_numpy("logits")
        key = f"in={'binary' if binary_in else 'json'} out={'binary' if binary_out else 'json'}"
        report[key] = bool(np.allclose(logits, known["logits"], atol=1e-3)) and answer.get_response()["id"] == "r1"

try:
    client.get_model_metadata("no-such-model")
except InferenceServerException as error:
    report["unknown_model"] = str(error)
print(json.dumps(report))
