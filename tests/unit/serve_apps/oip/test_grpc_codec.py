"""ModelInfer's messages: what goes in comes out, raw or typed, and what is wrong is named before it does harm."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cluster.errors import InvalidRequest, PayloadTooLarge
from cluster.tensors import DATATYPE_OF_NUMPY, NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from serve_apps.oip import grpc_codec
from serve_apps.oip.proto.open_inference_grpc_pb2 import ModelInferRequest
from serve_apps.oip.tensors import raw_bytes

OUTPUTS = [TensorSpec(name="y", datatype="FP32", shape=(-1,)), TensorSpec(name="h", datatype="FP16", shape=(-1,))]
TYPED = sorted(set(NUMPY_OF_DATATYPE) - {"FP16"})
shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


def arrays(datatype: str) -> st.SearchStrategy[NDArray[Any]]:
    if datatype == "BYTES":
        return hnp.arrays(np.object_, shapes, elements=st.binary(max_size=9), fill=st.nothing())
    return hnp.arrays(NUMPY_OF_DATATYPE[datatype], shapes)


def message(array: NDArray[Any], *, raw: bool, **changes: Any) -> Any:
    made = ModelInferRequest(model_name="m", id="7")
    datatype = DATATYPE_OF_NUMPY[array.dtype]
    entry = made.inputs.add(**{"name": "x", "datatype": datatype, "shape": array.shape} | changes)
    if raw:
        made.raw_input_contents.append(raw_bytes(array))
    else:
        getattr(entry.contents, grpc_codec._TYPED[datatype]).extend(array.ravel().tolist())
    return made


def decoded(made: Any) -> grpc_codec.Decoded:
    """Over the wire."""
    read = grpc_codec.parse(made.SerializeToString())
    return grpc_codec.decode(read, list(read.raw_input_contents), OUTPUTS)


@pytest.mark.parametrize("datatype", sorted(NUMPY_OF_DATATYPE))
@given(data=st.data())
def test_raw_contents_of_every_datatype_arrive_as_they_left(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    found = decoded(message(array, raw=True))
    assert found.raw or not found.request.inputs
    got = found.request.inputs["x"]
    assert (got.dtype, got.shape, raw_bytes(got)) == (array.dtype, array.shape, raw_bytes(array))


@pytest.mark.parametrize("datatype", TYPED)
@given(data=st.data())
def test_typed_contents_of_every_datatype_arrive_as_they_left(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    got = decoded(message(array, raw=False)).request.inputs["x"]
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(got, array)


def test_an_answer_is_raw_as_the_request_was_unless_it_says_otherwise() -> None:
    one = np.ones(1, np.float32)

    def raw(made: Any, outputs: tuple[str, ...] = ("y",), **parameters: bool) -> bool:
        for name in outputs:
            made.outputs.add(name=name)
        for name, value in parameters.items():
            made.parameters[name].bool_param = value
        return decoded(made).raw

    assert raw(message(one, raw=True))
    assert not raw(message(one, raw=False))
    assert not raw(message(one, raw=True), binary_data_output=False)
    assert raw(message(one, raw=False), binary_data_output=True)
    assert raw(message(one, raw=False), ("y", "h")), "FP16 has no typed contents, and it is all raw or none"


@pytest.mark.parametrize("typed", [False, True])
def test_what_is_encoded_is_what_a_client_reads(typed: bool) -> None:
    made = message(np.ones(1, np.float32), raw=not typed)
    made.outputs.add(name="y")
    asked = decoded(made)
    results = {"y": np.array([1.5, -2], np.float32)}
    answer = grpc_codec.encode("m", "v1", "cnn/int8", asked, results)
    tail = b"".join(grpc_codec.tail("id-é", [] if typed else [results["y"].tobytes()]))
    read = type(answer).FromString(answer.SerializeToString() + tail)
    assert (read.model_name, read.model_version, read.id) == ("m", "v1", "id-é")
    assert read.parameters["variant"].string_param == "cnn/int8"
    [output] = read.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [2])
    got = np.array(output.contents.fp32_contents) if typed else np.frombuffer(read.raw_output_contents[0], np.float32)
    np.testing.assert_array_equal(got, results["y"])


def test_typed_bytes_go_out_whether_the_model_made_text_or_bytes() -> None:
    """ONNX Runtime answers str, and typed contents take bytes alone."""
    outputs = (TensorSpec(name="y", datatype="BYTES", shape=(-1,)),)
    made = message(np.ones(1, np.float32), raw=False)
    asked = grpc_codec.decode(made, [], outputs)
    answer = grpc_codec.encode("m", "v1", "cnn/int8", asked, {"y": np.array(["Gr\u00fc\u00dfe", b"\xff"], object)})
    assert list(answer.outputs[0].contents.bytes_contents) == ["Gr\u00fc\u00dfe".encode(), b"\xff"]


def _two_inputs(made: Any) -> None:
    made.inputs.add(name="z", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)


INT8 = np.array([1, 2], np.int8)
WRONG: dict[str, tuple[Any, str]] = {
    "no input": (ModelInferRequest(model_name="m"), "`inputs` is empty"),
    "datatype": (message(INT8, raw=True, datatype="INT9"), "INT9"),
    "too few raw bytes": (message(INT8, raw=True, shape=[3]), "takes 3 bytes"),
    "too few values": (message(INT8, raw=False, shape=[3]), "needs 3 values"),
    "negative size": (message(INT8, raw=True, shape=[-1]), "from 0 to 2\\^31"),
    "rank": (message(INT8, raw=True, shape=[1] * 17), "at most 16 sizes"),
    "huge beside zero": (message(np.zeros(0, np.int8), raw=True, shape=[0] + [2**31 - 1] * 9), "has shape"),
    "another field": (message(INT8, raw=False, datatype="FP32"), "int_contents"),
    "beyond its type": (message(np.array([300], np.int32), raw=False, datatype="INT8"), "beyond INT8"),
    "FP16 typed": (message(INT8, raw=False, datatype="FP16"), "no typed contents"),
    "long name": (message(INT8, raw=True, name="x" * 257), "longer than 256"),
    "BOOL": (message(INT8, raw=True, datatype="BOOL"), "0 or 1"),
    "cut strings": (message(INT8, raw=True, datatype="BYTES"), "BYTES"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    made, says = WRONG[what]
    with pytest.raises(InvalidRequest, match=says):
        decoded(made)


def test_raw_and_typed_do_not_mix() -> None:
    made = message(INT8, raw=True)
    _two_inputs(made)
    with pytest.raises(InvalidRequest, match="2 inputs and 1 raw_input_contents"):
        decoded(made)
    made.raw_input_contents.append(bytes(4))
    with pytest.raises(InvalidRequest, match="all inputs the one way"):
        decoded(made)


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (b"\x2a\x00" * 40_000, PayloadTooLarge, "1024 fields"),
        (b"\x2a\x80\x80\x80\x04" + bytes(8 << 20), PayloadTooLarge, "beside raw_input_contents"),
        (b"\x3a\xff\xff\xff\x0f" + bytes(100_000), InvalidRequest, "cut off"),
        (b"\xff" * 100_000, InvalidRequest, "does not end"),
        (b"\x0b" * 100_000, InvalidRequest, "kind 3"),
        (b"\xff" * 10, InvalidRequest, "no ModelInferRequest"),
    ],
)
def test_a_hostile_message_is_refused_before_it_is_unpacked(body: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        grpc_codec.parse(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    with suppress(InvalidRequest):
        read = grpc_codec.parse(body)
        grpc_codec.decode(read, list(read.raw_input_contents), OUTPUTS)
