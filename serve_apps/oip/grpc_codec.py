"""Open Inference Protocol v2, gRPC: the messages of ModelInfer <-> tensors, raw or typed.

Raw contents are read where protobuf left them: nothing is copied, nothing writable. Typed contents are one value after
the other; 16-bit floats have none, so FP16 travels raw only. An answer is raw if the request was, or if the parameter
`binary_data_output` (REST's word for it) says so, or if one of its outputs is FP16: the protocol has all outputs raw or
none.

A hostile message may be small and unpack to much: two bytes are an empty tensor, which takes a hundred in memory. So a
message is measured before it is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from cluster.errors import InferenceFailed, InvalidRequest, PayloadTooLarge
from cluster.tensors import DATATYPE_OF_NUMPY, NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from serve_apps.oip.codec import InferRequest, wanted_outputs
from serve_apps.oip.proto.open_inference_grpc_pb2 import ModelInferRequest, ModelInferResponse
from serve_apps.oip.tensors import MAX_TEXTS, brief, encoded, from_raw, objects
from serve_apps.oip.wishes import NAMES, NONE, Wishes, wishes

MAX_TYPED_BYTES = 4 << 20
"""Of a message without its raw contents: unpacking holds the event loop, at up to 30 ms for each MiB."""
MAX_FIELDS = 1024
"""Of the message itself: tensors, outputs, parameters and raw contents together."""
_SMALL_BYTES = 64 << 10
"""What is no larger does no harm, whatever is in it."""
_RAW_FIELD = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_READ = (*NAMES, "binary_data_output")
_TYPED = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_WIDE: dict[str, type[np.generic]] = {"int_contents": np.int32, "uint_contents": np.uint32}


class Decoded(NamedTuple):
    """A decoded message."""

    request: InferRequest
    raw: bool
    """How it is answered."""


def parse(body: bytes) -> Any:
    """The message, unpacked. Raises InvalidRequest, PayloadTooLarge."""
    if len(body) > _SMALL_BYTES:
        _measure(body)
    try:
        return ModelInferRequest.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the message of {len(body)} bytes is no ModelInferRequest: {error}") from error


def decode(message: Any, raws: Sequence[bytes], outputs: Iterable[TensorSpec], otherwise: Wishes = NONE) -> Decoded:
    """A message, and the raw contents that were taken out of it. What it wishes for nothing in is `otherwise`. Raises
    InvalidRequest naming what is wrong."""
    parameters = {name: value_of(message.parameters[name]) for name in _READ if name in message.parameters}
    entries = message.inputs
    if not entries:
        raise InvalidRequest("`inputs` is empty; there must be at least one tensor")
    if raws and len(raws) != len(entries):
        raise InvalidRequest(
            f"there are {len(entries)} inputs and {len(raws)} raw_input_contents; each input needs its own, in the "
            "same order"
        )
    inputs: dict[str, NDArray[np.generic]] = {}
    for position, entry in enumerate(entries):
        name = entry.name
        if len(name) > 256 or name in inputs:
            raise InvalidRequest(f"input name {brief.repr(name)} is there twice, or longer than 256 characters")
        inputs[name] = _tensor(entry, f"input {brief.repr(name)}", raws[position] if raws else None)
    asked = [{"name": entry.name} for entry in message.outputs]
    specs = {spec.name: spec for spec in outputs}
    wanted = wanted_outputs(asked, True, specs.values())
    raw = parameters.get("binary_data_output", bool(raws))
    if type(raw) is not bool:
        raise InvalidRequest(f"parameter binary_data_output={brief.repr(raw)} must be a boolean")
    raw = raw or any(specs[name].datatype == "FP16" for name in wanted)
    return Decoded(InferRequest(message.id or None, inputs, wanted, wishes(parameters, otherwise)), raw)


def encode(
    model_name: str, model_version: str, variant: str, asked: Decoded, results: Mapping[str, NDArray[np.generic]]
) -> Any:
    """The answer, without raw contents where it has them. Raises InferenceFailed if the results are not what is
    wanted."""
    answer = ModelInferResponse(model_name=model_name, model_version=model_version)
    answer.parameters["variant"].string_param = variant
    for name in asked.request.binary_outputs:
        if name not in results:
            raise InferenceFailed(f"the model gave no output {name!r}; it gave {sorted(results)}")
        array = results[name]
        datatype = DATATYPE_OF_NUMPY.get(array.dtype)
        if datatype is None:
            raise InferenceFailed(f"output {name!r} of {array.dtype} cannot be sent")
        entry = answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if not asked.raw:
            values = array.ravel().tolist()
            getattr(entry.contents, _TYPED[datatype]).extend(map(encoded, values) if datatype == "BYTES" else values)
    return answer


def tail(answer_id: str | None, raws: Iterable[bytes]) -> list[bytes]:
    """The fields of an answer that differ from request to request, as they stand on the wire."""
    parts = []
    if answer_id:
        text = answer_id.encode()
        parts += [b"\x1a", _varint(len(text)), text]
    for raw in raws:
        parts += [b"\x32", _varint(len(raw)), raw]
    return parts


def _tensor(entry: Any, what: str, raw: bytes | None) -> NDArray[np.generic]:
    datatype = entry.datatype
    dtype = NUMPY_OF_DATATYPE.get(datatype)
    if dtype is None:
        raise InvalidRequest(
            f"{what} has datatype {brief.repr(datatype)}; the protocol knows {', '.join(NUMPY_OF_DATATYPE)}"
        )
    shape, count = list(entry.shape), 1
    if len(shape) > 16 or not all(0 <= size < 1 << 31 for size in shape):
        raise InvalidRequest(f"{what} has shape {brief.repr(shape)}; it must be at most 16 sizes from 0 to 2^31 - 1")
    for size in shape:
        count *= size
    typed = entry.contents.ListFields() if entry.HasField("contents") else []
    if raw is not None and typed:
        raise InvalidRequest(
            f"{what} has `contents`, and the message has raw_input_contents; send all inputs the one way, or all the "
            "other"
        )
    try:
        if raw is not None:
            return from_raw(f"raw_input_contents of {what}", raw, 0, len(raw), dtype, shape, count)
        present = [field.name for field, _ in typed]
        return _from_typed(what, entry.contents, present, datatype, dtype, shape, count).reshape(shape)
    except ValueError as error:
        if isinstance(error, InvalidRequest):
            raise
        # Only sizes beside a zero get here: no data, and still more than an address space.
        raise InvalidRequest(f"{what} has shape {shape}: {error}") from error


def _from_typed(
    what: str, contents: Any, present: list[str], datatype: str, dtype: np.dtype[Any], shape: list[int], count: int
) -> NDArray[np.generic]:
    field = _TYPED.get(datatype)
    if field is None:
        raise InvalidRequest(f"{what} is {datatype}, which has no typed contents; send it in raw_input_contents")
    values = getattr(contents, field)
    if present not in ([field], []) or len(values) != count:
        got = f"{', '.join(present)} with {len(values)} values in {field}" if present else "no contents"
        raise InvalidRequest(f"{what} has {got}; shape {shape} of {datatype} needs {count} values in {field} alone")
    if datatype == "BYTES":
        if count > MAX_TEXTS:
            raise PayloadTooLarge(f"{what} has {count} elements; at most {MAX_TEXTS} of BYTES are taken")
        return objects(list(values))
    array: NDArray[np.generic] = np.array(values, _WIDE.get(field, dtype))
    narrow = array.astype(dtype, copy=False)
    if narrow.dtype != array.dtype and not np.array_equal(narrow, array):
        raise InvalidRequest(f"{what}: {field} holds a number beyond {datatype}")
    return narrow


def value_of(parameter: Any) -> Any:
    """None if it says nothing."""
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _measure(body: bytes) -> None:
    """Raises PayloadTooLarge for more than MAX_FIELDS fields, or MAX_TYPED_BYTES beside raw contents; InvalidRequest
    where the message is cut off."""
    at, end, beside = 0, len(body), 0
    for _ in range(MAX_FIELDS):
        if at >= end:
            break
        began = at
        tag, at = _read_varint(body, at)
        match tag & 7:
            case 0:
                _, at = _read_varint(body, at)
            case 1:
                at += 8
            case 2:
                size, at = _read_varint(body, at)
                at += size
            case 5:
                at += 4
            case kind:
                raise InvalidRequest(f"the message is no ModelInferRequest: byte {began} begins a field of kind {kind}")
        if tag >> 3 != _RAW_FIELD:
            beside += at - began
    else:
        if at < end:
            raise PayloadTooLarge(f"the message has more than {MAX_FIELDS} fields; send fewer tensors in one request")
    if at != end:
        raise InvalidRequest(f"the message of {end} bytes is cut off: its last field ends at {at}")
    if beside > MAX_TYPED_BYTES:
        raise PayloadTooLarge(
            f"the message has {beside} bytes beside raw_input_contents; at most {MAX_TYPED_BYTES} are taken: send the "
            "tensors raw, or fewer rows in one request"
        )


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(body) and shift < 64:
        byte = body[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise InvalidRequest(f"the message is no ModelInferRequest: the number at byte {at} does not end")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
