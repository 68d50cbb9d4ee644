"""tritonclient over gRPC: it sends raw contents, and reads both kinds."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from arrays import check, datatype, known
from harness import Checks
from tritonclient.utils import InferenceServerException

checks = Checks()
inputs, outputs = known(checks)
client = triton.InferenceServerClient(checks.grpc)


def infer(*, wanted: list[str] | None = None, model: str = checks.model, **options: Any) -> triton.InferResult:
    tensors = []
    for name, array in inputs.items():
        tensors.append(triton.InferInput(name, list(array.shape), datatype(array)))
        tensors[-1].set_data_from_numpy(array)
    asked = [triton.InferRequestedOutput(name) for name in wanted or outputs]
    return client.infer(model, tensors, outputs=asked, client_timeout=20.0, **options)


def check_all(answer: triton.InferResult) -> None:
    for name, want in outputs.items():
        check(answer.as_numpy(name), want)


def refused(call: Any, code: str, *words: str) -> None:
    """Raises unless the server says no, with that code and in words that hold these."""
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}", str(error)
        assert all(word in str(error) for word in words), str(error)
        assert error.message()
    else:
        raise AssertionError("it was answered")


def api() -> None:
    with checks.row("live"):
        assert client.is_server_live()
    with checks.row("ready"):
        assert client.is_server_ready()
    with checks.row("server"):
        said = client.get_server_metadata()
        assert said.name
        assert said.version
        assert list(said.extensions)
    for row, number in (("model", ""), ("model-version", checks.version)):
        with checks.row(row):
            said = client.get_model_metadata(checks.model, number)
            assert said.name == checks.model
            assert checks.version in said.versions
            assert said.platform
            for got, known_ones in ((said.inputs, inputs), (said.outputs, outputs)):
                assert [each.name for each in got] == list(known_ones)
                for each, array in zip(got, known_ones.values(), strict=True):
                    assert each.datatype == datatype(array)
                    assert list(each.shape) == [-1, *array.shape[1:]]
    for row, number in (("model-ready", ""), ("model-ready-version", checks.version)):
        with checks.row(row):
            assert client.is_model_ready(checks.model, number)
    for row, number in (("infer", ""), ("infer-version", checks.version)):
        with checks.row(row):
            check_all(infer(model_version=number))


def payload() -> None:
    with checks.row("id"):
        assert infer(request_id="forty-two").get_response().id == "forty-two"
        assert infer().get_response().id == ""
    with checks.row("parameters"):
        check_all(infer(priority=1, timeout=5_000_000, parameters={"text": "a", "flag": True, "number": 2}))
    with checks.row("outputs"):
        answer = infer(wanted=["label"])
        assert answer.as_numpy("logits") is None
        check(answer.as_numpy("label"), outputs["label"])
    with checks.row("model-name"):
        said = infer().get_response()
        assert (said.model_name, said.model_version) == (checks.model, checks.version)
    for row in ("batch", "raw-in"):
        with checks.row(row):
            check_all(infer())
    with checks.row("gzip-in"):
        check_all(infer(compression_algorithm="gzip"))
    with checks.row("deflate-in"):
        check_all(infer(compression_algorithm="deflate"))


def datatypes() -> None:
    for name, array in inputs.items():
        back = f"{name}_back"
        with checks.row(f"{datatype(array)}-raw"):
            check(infer(wanted=[back]).as_numpy(back), outputs[back])


def errors() -> None:
    with checks.row("unknown-model"):
        refused(lambda: client.get_model_metadata("nobody"), "NOT_FOUND", "nobody")
    with checks.row("unknown-version"):
        refused(lambda: client.get_model_metadata(checks.model, "0"), "NOT_FOUND")
    with checks.row("unknown-infer"):
        refused(lambda: infer(model="nobody"), "NOT_FOUND", "nobody")
    with checks.row("unknown-output"):
        refused(lambda: infer(wanted=["nobody"]), "INVALID_ARGUMENT", "nobody")
    with checks.row("wrong-datatype"):
        tensor = triton.InferInput("image", [1, 1, 28, 28], "FP64")
        tensor.set_data_from_numpy(np.zeros((1, 1, 28, 28)))
        refused(lambda: client.infer(checks.model, [tensor]), "INVALID_ARGUMENT", "FP64")


if checks.serves == "pictures":
    api()
    payload()
    errors()
else:
    datatypes()
checks.report(tritonclient=version("tritonclient"), grpcio=version("grpcio"))
