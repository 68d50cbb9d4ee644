"""Open Inference Protocol v2, REST: bytes <-> tensors, JSON or binary (Triton's binary tensor data extension).

A binary body is JSON of `Inference-Header-Content-Length` bytes, then the raw little-endian tensors in the order of
their `parameters.binary_data_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.tensors import DATATYPE_OF_NUMPY, NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec

HEADER_LENGTH = "inference-header-content-length"
_NO_JSON = ("FP16", "BYTES")


@dataclass(frozen=True)
class InferRequest:
    """A decoded request; `binary_outputs` says for each wanted output whether it goes back as raw bytes."""

    id: str | None
    inputs: dict[str, NDArray[np.generic]]
    binary_outputs: dict[str, bool]
    timeout_s: float | None = None
    priority: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)


def _json(data: bytes | memoryview) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the request is a JSON {type(value).__name__}; it must be an object with `inputs`")
    return value


def _split(body: bytes, headers: Mapping[str, str]) -> tuple[dict[str, Any], memoryview]:
    """(the JSON part, the raw tail)"""
    length = headers.get(HEADER_LENGTH)
    if length is None:
        return _json(body), memoryview(b"")
    if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length: {length[:32]!r} does not fit a body of {len(body)} bytes")
    view = memoryview(body)
    return _json(view[: int(length)]), view[int(length) :]


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} is a {type(value).__name__}; it must be an object")
    return value


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(d) is int and 0 <= d < 1 << 31 for d in value) or len(value) > 16:
        raise InvalidRequest(f"input {name!r} has shape {str(value)[:80]}; it must be a list of sizes")
    return tuple(value)


def _tensor(spec: Any, tail: memoryview, offset: int) -> tuple[str, NDArray[np.generic], int]:
    """(name, array, bytes taken off the tail) of one entry of `inputs`."""
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise InvalidRequest("each entry of `inputs` must be an object with a `name`")
    name = spec["name"]
    datatype = spec.get("datatype")
    if not isinstance(datatype, str) or datatype not in NUMPY_OF_DATATYPE:
        raise InvalidRequest(f"input {name!r} has datatype {str(datatype)[:40]!r}; known: {', '.join(NUMPY_OF_DATATYPE)}")
    shape = _shape(name, spec.get("shape"))
    dtype = NUMPY_OF_DATATYPE[datatype]
    count = 1
    for size in shape:
        count *= size
    taken = _mapping(spec.get("parameters"), f"parameters of input {name!r}").get("binary_data_size")
    if taken is not None:
        if datatype == "BYTES":
            raise InvalidRequest(f"input {name!r}: binary BYTES tensors are not supported by this model")
        want = count * dtype.itemsize
        if type(taken) is not int or taken != want:
            raise InvalidRequest(
                f"input {name!r} says binary_data_size {str(taken)[:20]}; shape {list(shape)} of {datatype} is {want}"
            )
        if offset + want > len(tail):
            raise InvalidRequest(f"input {name!r} needs {want} bytes of binary data; only {len(tail) - offset} are left")
        return name, np.frombuffer(tail, dtype=dtype, count=count, offset=offset).reshape(shape), want
    if datatype in _NO_JSON:
        raise InvalidRequest(f"input {name!r}: {datatype} tensors travel as binary data only")
    data = spec.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(f"input {name!r} has no `data` list and no `binary_data_size`")
    return name, _from_json(name, data, dtype, shape, count), 0


def _from_json(name: str, data: list[Any], dtype: Any, shape: tuple[int, ...], count: int) -> NDArray[np.generic]:
    try:
        array = np.array(data)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"input {name!r}: `data` is ragged or no numbers ({str(error)[:80]})") from error
    if array.dtype.kind not in "biuf":
        raise InvalidRequest(f"input {name!r}: `data` holds {array.dtype.name} values; it must hold numbers")
    if array.size != count:
        raise InvalidRequest(f"input {name!r} has {array.size} values; shape {list(shape)} needs {count}")
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if array.dtype.kind == "f" or (array.size and (array.min() < bounds.min or array.max() > bounds.max)):
            raise InvalidRequest(f"input {name!r}: `data` does not fit {dtype.name} ({bounds.min} to {bounds.max})")
    if (dtype.kind == "b") != (array.dtype.kind == "b") and array.size:
        raise InvalidRequest(f"input {name!r}: `data` holds {array.dtype.name} values; the datatype says {dtype.name}")
    return array.astype(dtype).reshape(shape)


def _integer(parameters: dict[str, Any], name: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)  # some clients send every parameter as a string
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise InvalidRequest(f"parameter {name}={str(value)[:40]!r} must be an integer, at least 0")
    return value


def decode(body: bytes, headers: Mapping[str, str], outputs: tuple[TensorSpec, ...]) -> InferRequest:
    """Decode a request. `headers` have lower-case names. Raises InvalidRequest naming what is wrong.

    `timeout` (microseconds) and `priority` (1 is highest, 0 none) are Triton's request parameters.
    """
    request, tail = _split(body, headers)
    if not isinstance(request.get("inputs"), list):
        raise InvalidRequest("the request has no list `inputs`")
    inputs: dict[str, NDArray[np.generic]] = {}
    offset = 0
    for spec in request["inputs"]:
        name, array, taken = _tensor(spec, tail, offset)
        if name in inputs:
            raise InvalidRequest(f"input {name!r} is there twice")
        inputs[name] = array
        offset += taken
    if offset != len(tail):
        raise InvalidRequest(f"{len(tail) - offset} bytes of binary data belong to no input")
    parameters = _mapping(request.get("parameters"), "parameters")
    timeout_us = _integer(parameters, "timeout")
    request_id = request.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidRequest(f"id is a {type(request_id).__name__}; it must be a string")
    return InferRequest(
        id=request_id,
        inputs=inputs,
        binary_outputs=_wanted(request.get("outputs"), bool(parameters.get("binary_data_output")), outputs),
        timeout_s=timeout_us / 1e6 if timeout_us else None,
        priority=_integer(parameters, "priority") or 0,
        parameters=parameters,
    )


def _wanted(asked: Any, binary: bool, outputs: tuple[TensorSpec, ...]) -> dict[str, bool]:
    known = [spec.name for spec in outputs]
    if not asked:
        return dict.fromkeys(known, binary)
    if not isinstance(asked, list):
        raise InvalidRequest("`outputs` must be a list")
    wanted = {}
    for entry in asked:
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in known:
            raise InvalidRequest(f"output {str(name)[:80]!r} is unknown; the model gives {known}")
        parameters = _mapping(entry.get("parameters"), f"parameters of output {name!r}")
        wanted[name] = bool(parameters.get("binary_data", binary))
    return wanted


def encode_response(
    model_name: str, model_version: str, request: InferRequest, results: Mapping[str, NDArray[np.generic]]
) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of the answer."""
    entries, raw = [], []
    for name, binary in request.binary_outputs.items():
        array = np.ascontiguousarray(results[name])
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPE_OF_NUMPY[array.dtype], "shape": list(array.shape)}
        if binary:
            raw.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": entries}
    if request.id is not None:
        answer["id"] = request.id
    head = orjson.dumps(answer)
    if not raw:
        return head, {"content-type": "application/json"}
    return b"".join([head, *raw]), {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def encode_request(
    inputs: Mapping[str, NDArray[np.generic]], *, binary: bool, id: str | None = None,
    parameters: dict[str, Any] | None = None, binary_output: bool | None = None,
) -> tuple[bytes, dict[str, str]]:  # fmt: skip
    """(body, headers) of a request: the client's side of `decode`."""
    entries, raw = [], []
    for name, array in inputs.items():
        array = np.ascontiguousarray(array)
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPE_OF_NUMPY[array.dtype], "shape": list(array.shape)}
        if binary:
            raw.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    request: dict[str, Any] = {"inputs": entries}
    options = dict(parameters or {})
    if binary_output is not None:
        options["binary_data_output"] = binary_output
    if options:
        request["parameters"] = options
    if id is not None:
        request["id"] = id
    head = orjson.dumps(request)
    if not raw:
        return head, {"content-type": "application/json"}
    return b"".join([head, *raw]), {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def decode_response(body: bytes, headers: Mapping[str, str]) -> dict[str, NDArray[np.generic]]:
    """The tensors of an answer: the client's side of `encode_response`. Header names in lower case."""
    answer, tail = _split(body, headers)
    tensors: dict[str, NDArray[np.generic]] = {}
    offset = 0
    for spec in answer["outputs"]:
        name, array, taken = _tensor(spec, tail, offset)
        tensors[name] = array
        offset += taken
    return tensors
