"""Whatever arrays go in come out; whatever bytes come in, only InvalidRequest or its PayloadTooLarge get out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, from_dtype
from numpy.typing import NDArray

from cluster.errors import InferenceFailed, InvalidRequest, PayloadTooLarge
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from serve_apps.oip.codec import (
    HEADER_LENGTH,
    MAX_JSON_BYTES,
    InferRequest,
    decode,
    decode_response,
    encode_request,
    encode_response,
)  # fmt: skip

OUTPUTS = (
    TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),
    TensorSpec(name="label", datatype="INT64", shape=(-1,)),
)


ALL = list(NUMPY_OF_DATATYPE)
NUMERIC = [name for name in ALL if name != "BYTES"]


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str], *, finite: bool = False) -> NDArray[np.generic]:
    """Any datatype, up to 4 dimensions, empty ones and 0-d among them; contiguous or not. `finite`: as JSON has it."""
    dtype = NUMPY_OF_DATATYPE[draw(st.sampled_from(datatypes))]
    shape = draw(array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    if dtype.hasobject:
        texts = st.text(max_size=5).map(str.encode) if finite else st.binary(max_size=5)
        flat = np.empty(math.prod(shape), np.object_)
        flat[:] = draw(st.lists(texts, min_size=flat.size, max_size=flat.size))
        return draw(st.sampled_from([flat.reshape(shape), flat.reshape(shape).T]))
    elements = from_dtype(dtype, allow_nan=False, allow_infinity=False) if finite and dtype.kind == "f" else None
    tensor: NDArray[np.generic] = draw(arrays(dtype, shape, elements=elements))
    return draw(st.sampled_from([tensor, tensor.T, np.asfortranarray(tensor), tensor[::-1] if shape else tensor]))


def same(one: NDArray[np.generic], two: NDArray[np.generic]) -> bool:
    """Equal to the last bit, NaN and the zeros' signs too."""
    if one.dtype.hasobject:
        return one.shape == two.shape and two.dtype.hasobject and one.tolist() == two.tolist()
    return one.shape == two.shape and one.dtype == two.dtype and one.tobytes() == two.tobytes()


def request_for(**wanted: bool) -> InferRequest:
    return InferRequest(None, {}, wanted)


def answer_of(results: dict[str, Any], **wanted: bool) -> tuple[bytes, dict[str, str]]:
    body, length = encode_response("m", "1", request_for(**wanted), results)
    return body, {} if length is None else {HEADER_LENGTH: str(length)}


def body_of(**entry: Any) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 2]} | entry]})


@given(st.dictionaries(st.text(max_size=8), tensors(ALL), min_size=1, max_size=3), st.integers(0, 7))
def test_binary_requests_come_back_bit_by_bit(inputs: dict[str, NDArray[np.generic]], padding: int) -> None:
    # The padding moves the raw tensors to odd addresses, where executors must not be sent.
    body, headers = encode_request(inputs, binary=True, parameters={"p": "x" * padding})
    request = decode(body, headers, OUTPUTS)
    assert list(request.inputs) == list(inputs)
    for name, tensor in inputs.items():
        assert same(request.inputs[name], tensor)
        assert request.inputs[name].flags.aligned


@given(st.dictionaries(st.text(max_size=8), tensors(ALL, finite=True), min_size=1, max_size=3))
def test_json_requests_come_back_bit_by_bit(inputs: dict[str, NDArray[np.generic]]) -> None:
    body, headers = encode_request(inputs, binary=False)
    request = decode(body, headers, OUTPUTS)
    for name, tensor in inputs.items():
        assert same(request.inputs[name], tensor)


@given(tensors(NUMERIC, finite=True))
def test_nested_json_data_is_read_row_by_row(tensor: NDArray[np.generic]) -> None:
    nested = tensor.tolist() if tensor.ndim else [tensor.tolist()]
    name = next(name for name, dtype in NUMPY_OF_DATATYPE.items() if dtype == tensor.dtype)
    entry = {"name": "x", "shape": list(tensor.shape), "datatype": name, "data": nested}
    assert same(decode(orjson.dumps({"inputs": [entry]}), {}, OUTPUTS).inputs["x"], tensor)


@given(st.dictionaries(st.text(max_size=8), st.tuples(tensors(ALL, finite=True), st.booleans()), min_size=1))
def test_responses_come_back_bit_by_bit(outputs: dict[str, tuple[NDArray[np.generic], bool]]) -> None:
    request = InferRequest("id", {}, {name: binary for name, (_, binary) in outputs.items()})
    body, length = encode_response("m", "7", request, {name: tensor for name, (tensor, _) in outputs.items()})
    head = orjson.loads(body[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "7", "id")
    assert (length is None) == (not any(binary for _, binary in outputs.values()))
    answer = decode_response(body, {} if length is None else {HEADER_LENGTH: str(length)})
    for name, (tensor, _) in outputs.items():
        assert same(answer[name], tensor)


@given(tensors(["FP16", "FP32", "FP64"]))
def test_not_a_number_travels_as_binary_and_is_an_error_as_json(tensor: NDArray[np.floating[Any]]) -> None:
    assert same(decode_response(*answer_of({"y": tensor}, y=True))["y"], tensor)
    if np.isfinite(tensor).all():
        assert same(decode_response(*answer_of({"y": tensor}, y=False))["y"], tensor)
    else:
        with pytest.raises(InferenceFailed, match=r"NaN or infinity.*binary_data"):
            answer_of({"y": tensor}, y=False)
        with pytest.raises(InvalidRequest, match="NaN or infinity"):
            encode_request({"y": tensor}, binary=False)


def test_a_name_that_says_null_is_not_taken_for_a_missing_number() -> None:
    assert decode_response(*answer_of({"null": np.ones(2, np.float32)}, null=False))["null"].tolist() == [1, 1]


def test_arrays_are_views_of_the_body() -> None:
    body, headers = encode_request({"image": np.ones((1, 1, 28, 28), np.uint8)}, binary=True)
    image = decode(body, headers, OUTPUTS).inputs["image"]
    assert np.shares_memory(image, np.frombuffer(body, np.uint8))
    assert not image.flags.writeable


def test_parameters_and_wishes() -> None:
    inputs = {"x": np.zeros(1, np.uint8)}
    body, headers = encode_request(
        inputs, binary=True, id="r1", parameters={"timeout": 2_500_000, "priority": "3", "mine": 1}, binary_output=True
    )
    request = decode(body, headers, OUTPUTS)
    assert (request.id, request.wishes.timeout_s, request.wishes.priority) == ("r1", 2.5, 3)
    assert request.binary_outputs == {"logits": True, "label": True}
    plain = decode(*encode_request(inputs, binary=False), OUTPUTS)
    assert plain.id is None
    assert plain.wishes.timeout_s is None
    assert plain.wishes.priority == 0
    assert plain.binary_outputs == {"logits": False, "label": False}


def test_each_output_has_its_own_wish() -> None:
    request = orjson.loads(body_of())
    request["outputs"] = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "logits"}]
    request["parameters"] = {"binary_data_output": True, "timeout": None}
    assert decode(orjson.dumps(request), {}, OUTPUTS).binary_outputs == {"label": False, "logits": True}
    request["outputs"] = []
    assert decode(orjson.dumps(request), {}, OUTPUTS).binary_outputs == {"logits": True, "label": True}


def test_numbers_at_the_bounds() -> None:
    for name in NUMERIC:
        dtype = NUMPY_OF_DATATYPE[name]
        if dtype.kind in "iu":
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            for data in ([low, high], [high, low], [0, high]):
                array = decode(body_of(datatype=name, data=data), {}, OUTPUTS).inputs["x"]
                assert array.tolist() == data
            for beyond in (low - 1, high + 1):
                # What JSON can say but 64 bits cannot hold is read as a float.
                with pytest.raises(InvalidRequest, match=f"not all {name}"):
                    decode(body_of(data=[0, 0], datatype=name).replace(b"[0,0]", f"[0,{beyond}]".encode()), {}, OUTPUTS)


BAD_ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": None}, "with a `name`"),
    "long name": ({"name": "x" * 300}, "longer than 256"),
    "datatype": ({"datatype": "FP8"}, "datatype 'FP8'; the protocol knows BOOL"),
    "datatype list": ({"datatype": ["UINT8"]}, "datatype"),
    "numbers for bytes": ({"datatype": "BYTES"}, "not all BYTES"),
    "beyond fp16": ({"datatype": "FP16", "data": [65520, 0]}, "beyond FP16"),
    "text for fp16": ({"datatype": "FP16", "data": ["1", 0]}, "not all FP16"),
    "parameter list": ({"parameters": {"mine": [1]}}, "'mine' is \\[1\\]; it must be a string, number or boolean"),
    "both": ({"parameters": {"binary_data_size": 2}}, "both `data` and `parameters.binary_data_size`"),
    "no shape": ({"shape": None}, "shape None"),
    "float size": ({"shape": [2.0]}, "2.0 in its shape"),
    "bool size": ({"shape": [True, 2]}, "True in its shape"),
    "negative size": ({"shape": [-1]}, "-1 in its shape"),
    "huge size": ({"shape": [1 << 40]}, "in its shape"),
    "many sizes": ({"shape": [1] * 17}, "at most 16"),
    "too few": ({"shape": [3]}, "has 2 values in `data`; shape .3. needs 3"),
    "overflow": ({"shape": [1 << 30] * 16}, "needs"),
    "beside a zero": ({"shape": [0, *[(1 << 31) - 1] * 3], "data": []}, "too big"),
    "no data": ({"data": None}, "neither a list `data` nor"),
    "data is text": ({"data": "12"}, "neither a list `data` nor"),
    "strings": ({"data": ["1", "2"]}, "not all UINT8"),
    "none": ({"data": [1, None]}, "not all UINT8"),
    "float for int": ({"data": [1.5, 2]}, "not all UINT8"),
    "out of range": ({"data": [256, 2]}, "not all UINT8"),
    "negative": ({"data": [-1, 2]}, "not all UINT8"),
    "int for bool": ({"datatype": "BOOL", "data": [0, 1]}, "not all BOOL"),
    "text for float": ({"datatype": "FP32", "data": ["1", 2]}, "not all FP32"),
    "beyond fp32": ({"datatype": "FP32", "data": [1e300, 0]}, "beyond FP32"),
    "ragged": ({"shape": [2, 2], "data": [[1, 2], [3]]}, "nested, but not as shape"),
    "transposed": ({"shape": [2, 3], "data": [[1, 2], [3, 4], [5, 6]]}, "has 3 rows"),
    "half nested": ({"shape": [2, 1, 2], "data": [[1, 2], [3, 4]]}, "nested, but not as shape"),
    "too nested": ({"data": [[1], [2]]}, "not all UINT8"),
    "nested 0-d": ({"shape": [], "data": [[1]]}, "has 1 rows"),
    "mixed nesting": ({"shape": [2, 1], "data": [1, [2]]}, "not all UINT8"),
    "parameters": ({"parameters": [1]}, "must be an object"),
    "size text": ({"data": None, "parameters": {"binary_data_size": "2"}}, "binary_data_size='2'"),
    "size bool": ({"data": None, "parameters": {"binary_data_size": True}}, "binary_data_size=True"),
    "size bool of one": (
        {"shape": [1], "data": None, "parameters": {"binary_data_size": True}}, "binary_data_size=True"
    ),
    "size float": ({"data": None, "parameters": {"binary_data_size": 2.0}}, "binary_data_size=2.0"),
    "size wrong": ({"data": None, "parameters": {"binary_data_size": 3}}, "uint8 takes 2 bytes"),
    "size absent": ({"data": None, "parameters": {"binary_data_size": 2}}, "only 0 are left"),
}


@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_a_bad_tensor_is_named(kind: str) -> None:
    entry, complaint = BAD_ENTRIES[kind]
    with pytest.raises(InvalidRequest, match=complaint) as error:
        decode(body_of(**entry), {}, OUTPUTS)
    assert len(str(error.value)) < 600


BAD_REQUESTS: dict[str, tuple[Any, str]] = {
    "list": ([1], "JSON list"),
    "no inputs": ({}, "`inputs` is None"),
    "empty inputs": ({"inputs": []}, "at least one"),
    "inputs object": ({"inputs": {"x": 1}}, "must be a list"),
    "entry": ({"inputs": [7]}, "with a `name`, not 7"),
    "id": ({"id": 7}, "id=7 must be a string"),
    "parameters": ({"parameters": "fast"}, "must be an object"),
    "timeout": ({"parameters": {"timeout": -1}}, "timeout=-1 must be an integer"),
    "timeout float": ({"parameters": {"timeout": 0.5}}, "timeout=0.5 must be"),
    "priority": ({"parameters": {"priority": True}}, "priority=True must be"),
    "priority text": ({"parameters": {"priority": "high"}}, "priority='high' must be"),
    "flag": ({"parameters": {"binary_data_output": "yes"}}, "must be true or false"),
    "outputs": ({"outputs": {"name": "logits"}}, "must be a list"),
    "output": ({"outputs": ["logits"]}, "output None is unknown"),
    "unknown output": ({"outputs": [{"name": "probs"}]}, "'probs' is unknown; the model gives"),
    "unhashable output": ({"outputs": [{"name": {}}]}, "is unknown"),
    "output flag": ({"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "binary_data=1"),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_bad_request_is_named(kind: str) -> None:
    request, complaint = BAD_REQUESTS[kind]
    body = orjson.dumps(orjson.loads(body_of()) | request if request and isinstance(request, dict) else request)
    with pytest.raises(InvalidRequest, match=complaint):
        decode(body, {}, OUTPUTS)


@pytest.mark.parametrize("length", ["", "-1", "1.5", "x", "99999", "9" * 30, "9" * 5000, "²", "+5"])
def test_a_bad_header_length_is_named(length: str) -> None:
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length="):
        decode(body_of(), {HEADER_LENGTH: length}, OUTPUTS)


def test_binary_data_must_be_used_up_and_named_once() -> None:
    body, headers = encode_request({"x": np.zeros(4, np.uint8)}, binary=True)
    with pytest.raises(InvalidRequest, match="3 bytes of binary data belong to no input"):
        decode(body + b"abc", headers, OUTPUTS)
    with pytest.raises(InvalidRequest, match="needs 4 bytes of binary data; only 3 are left"):
        decode(body[:-1], headers, OUTPUTS)
    twice = orjson.dumps({"inputs": orjson.loads(body_of())["inputs"] * 2})
    with pytest.raises(InvalidRequest, match="there twice"):
        decode(twice, {}, OUTPUTS)


def test_a_bool_byte_is_zero_or_one() -> None:
    body, headers = encode_request({"x": np.array([True, False])}, binary=True)
    assert decode(body, headers, OUTPUTS).inputs["x"].tolist() == [True, False]
    with pytest.raises(InvalidRequest, match="BOOL and holds a byte above 1"):
        decode(body[:-1] + b"\x02", headers, OUTPUTS)


@pytest.mark.parametrize("depth", [200, 1000, 1023, 100_000])
@pytest.mark.parametrize("where", ["data", "shape", "name", "datatype", "parameters", "inputs", "outputs", "id"])
def test_deep_nesting_is_a_bad_request(depth: int, where: str) -> None:
    deep = b"[" * depth + b"]" * depth
    if where in ("inputs", "outputs", "id"):
        body = body_of()[:-1] + b',"%s":%s}' % (where.encode(), deep)
    else:
        body = body_of(**{where: "HERE"}).replace(b'"HERE"', deep)
    with pytest.raises(InvalidRequest):
        decode(body, {}, OUTPUTS)


def test_a_large_json_part_is_refused_with_the_way_out_and_a_large_binary_one_is_not() -> None:
    pad = b" " * (MAX_JSON_BYTES - len(body_of()))
    assert decode(body_of() + pad, {}, OUTPUTS).inputs["x"].tolist() == [1, 2]
    with pytest.raises(PayloadTooLarge, match=r"binary data .*or fewer rows") as refused:
        decode(body_of() + pad + b" ", {}, OUTPUTS)
    assert refused.value.http_status == 413
    inputs = {"x": np.zeros(MAX_JSON_BYTES + 1, np.uint8)}
    assert decode(*encode_request(inputs, binary=True), OUTPUTS).inputs["x"].nbytes == MAX_JSON_BYTES + 1


def test_outputs_that_cannot_be_sent() -> None:
    with pytest.raises(InferenceFailed, match=r"no output 'y'; it gave \['z'\]"):
        answer_of({"z": np.ones(1)}, y=True)
    for binary in (True, False):
        for odd in (np.array([object()]), np.ones(1, np.complex64), np.ones(1, ">f4")):
            with pytest.raises(InferenceFailed, match="cannot be sent"):
                answer_of({"y": odd}, y=binary)
            with pytest.raises(InvalidRequest, match="cannot be sent"):
                encode_request({"y": odd}, binary=binary)
    with pytest.raises(InferenceFailed, match="bytes that are no text for JSON; ask for it with"):
        answer_of({"y": np.array([b"\xff"], object)}, y=False)


def test_a_bad_answer_is_named_too() -> None:
    with pytest.raises(InvalidRequest, match="`outputs` is None"):
        decode_response(b'{"error": "no"}', {})
