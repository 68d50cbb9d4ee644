"""grpcio and nothing else: stubs made of the specification's own .proto, requests written by hand."""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from arrays import check, datatype, known
from grpc_tools import protoc
from harness import Checks

checks = Checks()
inputs, outputs = known(checks)
_proto = Path(checks.files["proto"])
_made = tempfile.mkdtemp()
protoc.main(["", f"-I{_proto.parent}", f"--python_out={_made}", f"--grpc_python_out={_made}", str(_proto)])
sys.path.insert(0, _made)
pb: Any = __import__(f"{_proto.stem}_pb2")
_stubs: Any = __import__(f"{_proto.stem}_pb2_grpc")
stub = _stubs.GRPCInferenceServiceStub(grpc.insecure_channel(checks.grpc))
_FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def request(*, raw: bool, wanted: list[str] | None = None, **fields: Any) -> Any:
    """Raw contents of every input, or typed ones."""
    made = pb.ModelInferRequest(**{"model_name": checks.model} | fields)
    for name, array in inputs.items():
        tensor = made.inputs.add(name=name, datatype=datatype(array), shape=array.shape)
        if raw:
            made.raw_input_contents.append(packed(array))
        else:
            getattr(tensor.contents, _FIELDS[datatype(array)]).extend(array.ravel().tolist())
    for name in wanted or ():
        made.outputs.add(name=name)
    return made


def packed(array: np.ndarray) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(x).to_bytes(4, "little") + x for x in array.ravel())


def tensor_of(answer: Any, name: str) -> np.ndarray:
    """Whether it came raw or typed."""
    at = [output.name for output in answer.outputs].index(name)
    output = answer.outputs[at]
    if answer.raw_output_contents:
        raw = answer.raw_output_contents[at]
        assert not output.HasField("contents"), "raw and typed contents together"
        if output.datatype == "BYTES":
            found = []
            while raw:
                size = int.from_bytes(raw[:4], "little")
                found.append(raw[4 : 4 + size])
                raw = raw[4 + size :]
            return np.array(found, object).reshape(output.shape)
        return np.frombuffer(raw, outputs[name].dtype).reshape(output.shape)
    values = list(getattr(output.contents, _FIELDS[output.datatype]))
    return np.array(values, outputs[name].dtype).reshape(output.shape)


def infer(message: Any) -> Any:
    return stub.ModelInfer(message, timeout=20)


def check_all(answer: Any) -> None:
    assert [output.name for output in answer.outputs] == list(outputs)
    for name, want in outputs.items():
        assert answer.outputs[list(outputs).index(name)].datatype == datatype(want)
        check(tensor_of(answer, name), want)


def refused(code: str, call: Any, message: Any) -> None:
    """Raises unless the server says no, with that code and a reason."""
    try:
        call(message, timeout=20)
    except grpc.RpcError as error:
        assert error.code().name == code, f"{error.code().name}: {error.details()}"
        assert error.details(), "no reason is given"
    else:
        raise AssertionError("it was answered")


def api() -> None:
    with checks.row("live"):
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live
    with checks.row("ready"):
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=20).ready
    with checks.row("server"):
        said = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=20)
        assert said.name
        assert said.version
    for row, number in (("model", ""), ("model-version", checks.version)):
        with checks.row(row):
            said = stub.ModelMetadata(pb.ModelMetadataRequest(name=checks.model, version=number), timeout=20)
            assert said.name == checks.model
            assert checks.version in said.versions
            for got, known_ones in ((said.inputs, inputs), (said.outputs, outputs)):
                assert [(t.name, t.datatype, list(t.shape)) for t in got] == [
                    (name, datatype(array), [-1, *array.shape[1:]]) for name, array in known_ones.items()
                ]
    for row, number in (("model-ready", ""), ("model-ready-version", checks.version)):
        with checks.row(row):
            assert stub.ModelReady(pb.ModelReadyRequest(name=checks.model, version=number), timeout=20).ready
    for row, number in (("infer", ""), ("infer-version", checks.version)):
        with checks.row(row):
            check_all(infer(request(raw=True, model_version=number)))


def payload() -> None:
    with checks.row("id"):
        assert infer(request(raw=True, id="forty-two")).id == "forty-two"
        assert infer(request(raw=True)).id == ""
    with checks.row("parameters"):
        message = request(raw=True)
        message.parameters["text"].string_param = "a"
        message.parameters["flag"].bool_param = True
        message.parameters["number"].int64_param = 2
        message.inputs[0].parameters["text"].string_param = "a"
        check_all(infer(message))
    with checks.row("outputs"):
        last = list(outputs)[-1]
        assert [output.name for output in infer(request(raw=True, wanted=[last])).outputs] == [last]
    with checks.row("model-name"):
        said = infer(request(raw=True))
        assert (said.model_name, said.model_version) == (checks.model, checks.version)
    for row, raw in (("batch", True), ("raw-in", True), ("flat", False)):
        with checks.row(row):
            check_all(infer(request(raw=raw)))


def datatypes() -> None:
    for name, array in inputs.items():
        back, kind = f"{name}_back", datatype(array)
        with checks.row(f"{kind}-raw"):
            check(tensor_of(infer(request(raw=True, wanted=[back])), back), outputs[back])
        if kind in _FIELDS:
            with checks.row(f"{kind}-list"):
                check(tensor_of(infer(request(raw=False, wanted=[back])), back), outputs[back])


def errors() -> None:
    metadata, ready, predict = stub.ModelMetadata, stub.ModelReady, stub.ModelInfer
    with checks.row("unknown-model"):
        refused("NOT_FOUND", metadata, pb.ModelMetadataRequest(name="nobody"))
        refused("NOT_FOUND", ready, pb.ModelReadyRequest(name="nobody"))
    with checks.row("unknown-version"):
        refused("NOT_FOUND", metadata, pb.ModelMetadataRequest(name=checks.model, version="0"))
        refused("NOT_FOUND", predict, request(raw=True, model_version="0"))
    with checks.row("unknown-infer"):
        refused("NOT_FOUND", predict, request(raw=True, model_name="nobody"))
    with checks.row("no-inputs"):
        refused("INVALID_ARGUMENT", predict, pb.ModelInferRequest(model_name=checks.model))

    def changed(**fields: Any) -> Any:
        message = request(raw=True)
        for field, value in fields.items():
            if field == "shape":
                message.inputs[0].shape[:] = value
            else:
                setattr(message.inputs[0], field, value)
        return message

    for row, fields in (
        ("unknown-input", {"name": "nobody"}), ("wrong-datatype", {"datatype": "FP64"}),
        ("wrong-shape", {"shape": [1, 2]}),
    ):  # fmt: skip
        with checks.row(row):
            refused("INVALID_ARGUMENT", predict, changed(**fields))
    with checks.row("few-values"):
        message = request(raw=True)
        message.raw_input_contents[0] = message.raw_input_contents[0][:-1]
        refused("INVALID_ARGUMENT", predict, message)
        message = request(raw=False)
        message.inputs[0].contents.uint_contents.pop()
        refused("INVALID_ARGUMENT", predict, message)
        message = request(raw=False)
        message.raw_input_contents.append(b"")
        refused("INVALID_ARGUMENT", predict, message)
    with checks.row("unknown-output"):
        refused("INVALID_ARGUMENT", predict, request(raw=True, wanted=["nobody"]))
    with checks.row("too-large"):
        large = request(raw=True)
        large.raw_input_contents[0] = bytes(20 << 20)
        refused("RESOURCE_EXHAUSTED", predict, large)


if checks.serves == "pictures":
    api()
    payload()
    errors()
else:
    datatypes()
checks.report(grpcio=version("grpcio"))
