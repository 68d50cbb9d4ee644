"""Open Inference Protocol v2, REST: bytes <-> tensors, JSON or binary (Triton's binary tensor data extension).

A binary body is JSON of `Inference-Header-Content-Length` bytes, then the raw little-endian tensors in the order of
their `parameters.binary_data_size`. Arrays decoded from it are views of the body: nothing is copied, nothing writable.

BYTES tensors are arrays of `bytes`: strings in JSON, and in binary each element behind its length in four bytes. A JSON
number for an FP16 is rounded to the nearest one; as it is told, it comes back to the last bit.

What JSON cannot carry is refused, never bent: an output with NaN or infinity, or with bytes that are no text, is an
error that says so, where a JSON writer would have sent null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.errors import InferenceFailed, InvalidRequest, PayloadTooLarge, SluiceError
from cluster.tensors import DATATYPE_OF_NUMPY, NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from serve_apps.oip.tensors import brief, from_json, from_raw, raw_bytes, texts_of
from serve_apps.oip.wishes import NONE, Wishes, wishes

HEADER_LENGTH = "inference-header-content-length"
MAX_JSON_BYTES = 4 << 20
"""Parsing holds the event loop, and with it every other request: 6 to 13 ms for each MiB of numbers."""
_AS_BINARY = {
    "inputs": "send it as binary data: binary=True",
    "outputs": 'ask for it with "binary_data": true in the output\'s parameters, or "binary_data_output": true',
}


class InferRequest(NamedTuple):
    """A decoded request; `binary_outputs` says for each wanted output whether it goes back as raw bytes."""

    id: str | None
    inputs: dict[str, NDArray[np.generic]]
    binary_outputs: dict[str, bool]
    wishes: Wishes = NONE


def decode(
    body: bytes, headers: Mapping[str, str], outputs: Iterable[TensorSpec], otherwise: Wishes = NONE
) -> InferRequest:
    """Decode a request. `headers` have lower-case names; what the request wishes for nothing in is `otherwise`. Raises
    InvalidRequest naming what is wrong, PayloadTooLarge for a JSON part above MAX_JSON_BYTES."""
    request, start = _parse(body, headers, MAX_JSON_BYTES)
    inputs = _tensors(request.get("inputs"), "input", body, start)
    parameters = _mapping(request.get("parameters"), "parameters")
    request_id = request.get("id")
    if request_id is not None and type(request_id) is not str:
        raise InvalidRequest(f"id={brief.repr(request_id)} must be a string")
    binary = _flag(parameters, "binary_data_output", False)
    wanted = wanted_outputs(request.get("outputs"), binary, outputs)
    return InferRequest(request_id, inputs, wanted, wishes(parameters, otherwise))


def encode_response(
    model_name: str, model_version: str, request: InferRequest, results: Mapping[str, NDArray[np.generic]],
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, int | None]:  # fmt: skip
    """The body of the answer, and the length of its JSON part if raw tensors follow it. Raises InferenceFailed if the
    results are not what `request` wants or, as JSON, cannot be written."""
    answer: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if parameters:
        answer["parameters"] = parameters
    if request.id is not None:
        answer["id"] = request.id
    wanted = []
    for name, binary in request.binary_outputs.items():
        if name not in results:
            raise InferenceFailed(f"the model gave no output {name!r}; it gave {sorted(results)}")
        wanted.append((name, results[name], binary))
    return _body(answer, "outputs", wanted, InferenceFailed)


def encode_request(
    inputs: Mapping[str, NDArray[np.generic]], *, binary: bool, id: str | None = None,
    parameters: dict[str, Any] | None = None, binary_output: bool | None = None,
    outputs: Sequence[str] | None = None,
) -> tuple[bytes, dict[str, str]]:  # fmt: skip
    """(body, headers) of a request: the client's side of `decode`. `outputs`: those that are wanted; None: all. Raises
    InvalidRequest for what cannot be sent."""
    options = dict(parameters or {})
    if binary_output is not None:
        options["binary_data_output"] = binary_output
    request: dict[str, Any] = {"parameters": options} if options else {}
    if id is not None:
        request["id"] = id
    if outputs is not None:
        request["outputs"] = [{"name": name} for name in outputs]
    body, length = _body(request, "inputs", [(name, tensor, binary) for name, tensor in inputs.items()], InvalidRequest)
    if length is None:
        return body, {"content-type": "application/json"}
    return body, {"content-type": "application/octet-stream", HEADER_LENGTH: str(length)}


def decode_response(body: bytes, headers: Mapping[str, str]) -> dict[str, NDArray[np.generic]]:
    """The tensors of an answer: the client's side of `encode_response`. Header names in lower case."""
    return decode_answer(body, headers)[1]


def decode_answer(
    body: bytes, headers: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
    """(the JSON part, the tensors) of an answer. Raises InvalidRequest naming what is wrong with it."""
    answer, start = _parse(body, headers)
    return answer, _tensors(answer.get("outputs"), "output", body, start)


def check_json_size(size: int, most: int = MAX_JSON_BYTES) -> None:
    """Raises PayloadTooLarge for a JSON part that would hold the event loop for too long."""
    if size > most:
        raise PayloadTooLarge(
            f"the JSON part has {size} bytes or more; at most {most} are taken: send the tensors as binary data "
            "(parameters.binary_data_size), or fewer rows in one request"
        )


def _parse(body: bytes, headers: Mapping[str, str], max_bytes: int | None = None) -> tuple[dict[str, Any], int]:
    """(the JSON part, where the raw tensors start)"""
    end = len(body)
    length = headers.get(HEADER_LENGTH)
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= end):
            raise InvalidRequest(
                f"Inference-Header-Content-Length={brief.repr(length)} does not fit a body of {end} bytes"
            )
        end = int(length)
    if max_bytes is not None:
        check_json_size(end, max_bytes)
    try:
        value = orjson.loads(body if end == len(body) else memoryview(body)[:end])
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request is no JSON: {error}") from error
    if type(value) is not dict:
        raise InvalidRequest(f"the body is a JSON {type(value).__name__}; it must be an object with tensors")
    return value, end


def _tensors(entries: Any, kind: str, body: bytes, offset: int) -> dict[str, NDArray[np.generic]]:
    """The tensors by name. `kind` is "input" or "output", for the errors; raw tensors start at `offset`."""
    if type(entries) is not list or not entries:
        raise InvalidRequest(f"`{kind}s` is {brief.repr(entries)}; it must be a list of tensors, at least one")
    tensors: dict[str, NDArray[np.generic]] = {}
    for entry in entries:
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise InvalidRequest(f"each entry of `{kind}s` must be an object with a `name`, not {brief.repr(entry)}")
        name = entry["name"]
        if len(name) > 256 or name in tensors:
            raise InvalidRequest(f"{kind} name {brief.repr(name)} is there twice, or longer than 256 characters")
        tensors[name], taken = _tensor(entry, f"{kind} {name!r}", body, offset)
        offset += taken
    if offset != len(body):
        raise InvalidRequest(f"{len(body) - offset} bytes of binary data belong to no {kind}")
    return tensors


def _tensor(entry: dict[str, Any], what: str, body: bytes, offset: int) -> tuple[NDArray[np.generic], int]:
    """(array, bytes of raw data that it took)"""
    datatype = entry.get("datatype")
    dtype = NUMPY_OF_DATATYPE.get(datatype) if type(datatype) is str else None
    if dtype is None:
        raise InvalidRequest(
            f"{what} has datatype {brief.repr(datatype)}; the protocol knows {', '.join(NUMPY_OF_DATATYPE)}"
        )
    shape, count = entry.get("shape"), 1
    if type(shape) is not list or len(shape) > 16:
        raise InvalidRequest(f"{what} has shape {brief.repr(shape)}; it must be a list of at most 16 sizes")
    for size in shape:
        if type(size) is not int or not 0 <= size < 1 << 31:
            raise InvalidRequest(f"{what} has {brief.repr(size)} in its shape; sizes are integers from 0 to 2^31 - 1")
        count *= size
    parameters = entry.get("parameters")
    size_bytes = None
    if parameters is not None:
        size_bytes = _mapping(parameters, f"parameters of {what}").get("binary_data_size")
    try:
        if size_bytes is not None:
            if entry.get("data") is not None:
                raise InvalidRequest(f"{what} has both `data` and `parameters.binary_data_size`; send one of them")
            return from_raw(what, body, offset, size_bytes, dtype, shape, count), size_bytes
        return from_json(what, entry.get("data"), dtype, shape, count), 0
    except ValueError as error:
        if isinstance(error, InvalidRequest):
            raise
        # Only sizes beside a zero get here: no data, and still more than an address space.
        raise InvalidRequest(f"{what} has shape {shape}: {error}") from error


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise InvalidRequest(f"{what}: {brief.repr(value)} must be an object")
    for name, each in value.items():
        if type(each) in (list, dict):
            raise InvalidRequest(
                f"{what}: {brief.repr(name)} is {brief.repr(each)}; it must be a string, number or boolean"
            )
    return value


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidRequest(f"parameter {name}={brief.repr(value)} must be true or false")
    return value


def wanted_outputs(asked: Any, binary: bool, outputs: Iterable[TensorSpec]) -> dict[str, bool]:
    """Name -> raw bytes? for each output that the request wants; without a list, for all of them. Raises InvalidRequest
    for one that is not there, or cannot be sent that way."""
    known = {spec.name: spec.datatype for spec in outputs}
    wanted = {}
    if asked is None or asked == []:
        wanted = dict.fromkeys(known, binary)
    elif type(asked) is not list:
        raise InvalidRequest(f"`outputs` is {brief.repr(asked)}; it must be a list")
    else:
        for entry in asked:
            name = entry.get("name") if type(entry) is dict else None
            if type(name) is not str or name not in known:
                raise InvalidRequest(f"output {brief.repr(name)} is unknown; the model gives {list(known)}")
            parameters = _mapping(entry.get("parameters"), f"parameters of output {name!r}")
            wanted[name] = _flag(parameters, "binary_data", binary)
    return wanted


def _body(
    head: dict[str, Any], key: str, tensors: Iterable[tuple[str, NDArray[np.generic], bool]], blame: type[SluiceError]
) -> tuple[bytes, int | None]:
    """`head` with the tensors as its `key`: (body, length of its JSON part if raw tensors follow). Raises `blame`."""
    entries: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, tensor, binary in tensors:
        datatype = DATATYPE_OF_NUMPY.get(tensor.dtype)
        if datatype is None:
            raise blame(f"{key[:-1]} {name!r} of {tensor.dtype} cannot be sent; the protocol has no such datatype")
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": tensor.shape}
        try:
            if binary:
                raw.append(raw_bytes(tensor))
                entry["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                entry["data"] = texts_of(tensor) if datatype == "BYTES" else tensor.ravel()
        except UnicodeDecodeError as error:
            raise blame(f"{key[:-1]} {name!r} holds bytes that are no text for JSON; {_AS_BINARY[key]}") from error
        except TypeError as error:
            raise blame(f"{key[:-1]} {name!r} is BYTES and cannot be sent: {error}") from error
        entries.append(entry)
    head[key] = entries
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # orjson's word for a number that JSON has not; or a name with that word in it
        for entry in entries:
            data = entry.get("data")
            if isinstance(data, np.ndarray) and not np.isfinite(data).all():
                told = f"{key[:-1]} {entry['name']!r} holds NaN or infinity, which JSON has not"
                raise blame(f"{told}; {_AS_BINARY[key]}")
    if not raw:
        return text, None
    return b"".join([text, *raw]), len(text)
