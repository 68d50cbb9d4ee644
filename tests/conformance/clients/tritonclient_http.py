"""tritonclient over HTTP: JSON and binary tensors, compression, and Triton's extensions."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import tritonclient.http as triton
from arrays import check, datatype, known
from harness import Checks
from tritonclient.utils import InferenceServerException

checks = Checks()
inputs, outputs = known(checks)
client = triton.InferenceServerClient(checks.http)


def infer(
    *, binary_in: bool = True, binary_out: bool = True, wanted: list[str] | None = None, model: str = checks.model,
    **options: Any,
) -> triton.InferResult:  # fmt: skip
    tensors = []
    for name, array in inputs.items():
        tensors.append(triton.InferInput(name, list(array.shape), datatype(array)))
        tensors[-1].set_data_from_numpy(array, binary_data=binary_in)
    asked = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in wanted or outputs]
    return client.infer(model, tensors, outputs=asked, **options)


def check_all(answer: triton.InferResult) -> None:
    for name, want in outputs.items():
        check(answer.as_numpy(name), want)


def refused(*words: str, **options: Any) -> None:
    """Raises unless the server says no, in words that hold these."""
    try:
        infer(**options)
    except InferenceServerException as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError("it was answered")


def api() -> None:
    with checks.row("live"):
        assert client.is_server_live()
    with checks.row("ready"):
        assert client.is_server_ready()
    with checks.row("server"):
        said = client.get_server_metadata()
        assert {"name", "version", "extensions"} <= said.keys()
        assert "binary_tensor_data" in said["extensions"]
    for row, number in (("model", ""), ("model-version", checks.version)):
        with checks.row(row):
            said = client.get_model_metadata(checks.model, number)
            assert said["name"] == checks.model
            assert checks.version in said["versions"]
            assert [each["name"] for each in said["inputs"]] == list(inputs)
    for row, number in (("model-ready", ""), ("model-ready-version", checks.version)):
        with checks.row(row):
            assert client.is_model_ready(checks.model, number)
            assert not client.is_model_ready("nobody", number)
    for row, number in (("infer", ""), ("infer-version", checks.version)):
        with checks.row(row):
            check_all(infer(model_version=number))


def payload() -> None:
    with checks.row("id"):
        assert infer(request_id="forty-two").get_response()["id"] == "forty-two"
    with checks.row("parameters"):
        check_all(infer(priority=1, timeout=5_000_000, parameters={"text": "a", "flag": True, "number": 2}))
    with checks.row("outputs"):
        answer = infer(wanted=["label"])
        assert answer.as_numpy("logits") is None
        check(answer.as_numpy("label"), outputs["label"])
    with checks.row("model-name"):
        said = infer().get_response()
        assert (said["model_name"], said["model_version"]) == (checks.model, checks.version)
    with checks.row("batch"):
        check_all(infer())
    with checks.row("flat"):
        check_all(infer(binary_in=False, binary_out=False))
    with checks.row("raw-in"):
        check_all(infer(binary_in=True, binary_out=False))
    with checks.row("raw-out"):
        check_all(infer(binary_in=False, binary_out=True))


def datatypes() -> None:
    for name, array in inputs.items():
        back, kind = f"{name}_back", datatype(array)
        with checks.row(f"{kind}-raw"):
            check(infer(wanted=[back]).as_numpy(back), outputs[back])
        if kind == "FP16":
            continue  # the client itself sends none as JSON
        with checks.row(f"{kind}-list"):
            check(infer(binary_in=False, binary_out=False, wanted=[back]).as_numpy(back), outputs[back])


def errors() -> None:
    with checks.row("unknown-model"):
        try:
            client.get_model_metadata("nobody")
        except InferenceServerException as error:
            assert "nobody" in str(error)
        else:
            raise AssertionError("it was answered")
    with checks.row("unknown-version"):
        refused("0", model_version="0")
    with checks.row("unknown-infer"):
        refused("nobody", model="nobody")
    with checks.row("unknown-output"):
        refused("nobody", wanted=["nobody"])
    with checks.row("wrong-datatype"):
        tensor = triton.InferInput("image", [1, 1, 28, 28], "FP64")
        tensor.set_data_from_numpy(np.zeros((1, 1, 28, 28)))
        try:
            client.infer(checks.model, [tensor])
        except InferenceServerException as error:
            assert "FP64" in str(error)
        else:
            raise AssertionError("it was answered")


def extensions() -> None:
    for row, algorithm in (("gzip-in", "gzip"), ("deflate-in", "deflate")):
        with checks.row(row):
            check_all(infer(request_compression_algorithm=algorithm))
            check_all(infer(request_compression_algorithm=algorithm, binary_in=False))
    with checks.row("gzip-out"):
        for algorithm in ("gzip", "deflate"):
            check_all(infer(response_compression_algorithm=algorithm, binary_out=False))
    with checks.row("config"):
        assert client.get_model_config(checks.model)["input"][0]["name"] == "image"
    with checks.row("stats"):
        said = client.get_inference_statistics(checks.model)["model_stats"]
        assert said[0]["inference_stats"]["success"]["count"] > 0
    with checks.row("index"):
        said = client.get_model_repository_index()
        assert any(each["name"] == checks.model for each in said)


def repository() -> None:
    with checks.row("load"):
        client.load_model(checks.model)
        check_all(infer())
    with checks.row("unload"):
        client.unload_model(checks.model)
        try:
            assert not client.is_model_ready(checks.model)
            refused("unloaded")
        finally:
            client.load_model(checks.model)
        check_all(infer())


if checks.serves == "pictures":
    api()
    payload()
    errors()
    extensions()
    if checks.repository:
        repository()
else:
    datatypes()
checks.report(tritonclient=version("tritonclient"))
