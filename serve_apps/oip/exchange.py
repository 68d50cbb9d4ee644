"""(head, body) of an inference -> the batcher -> (status, header lines, body), for whoever speaks HTTP.

The lean front and the ASGI application both come here, so that an answer does not depend on the way that it took. What
a head says (which model, what kind of body, which wishes) is read once and kept with the head; a binary request like
one seen before is not parsed again (templates.py).

Bodies: the Open Inference Protocol's (JSON, or JSON and raw tensors); of `application/octet-stream` without the
protocol's length header the bytes of the one input's rows and nothing else; of `image/jpeg` or `image/png` a picture,
which is decoded on a thread of its own. The last two are answered with the bytes of the one output if `accept` is
application/octet-stream, else in JSON. With a length header of 0 (Triton's raw binary request) the bytes of the one
input, answered with JSON and raw tensors.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.errors import SluiceError, UnknownModel
from cluster.tensors import NUMPY_OF_DATATYPE, check_inputs
from serve_apps import refusals
from serve_apps.executor import Answer, Model
from serve_apps.front.endpoint import Pending, Reply
from serve_apps.front.head import Head
from serve_apps.images import from_picture, from_raw, picture_input, single_input
from serve_apps.oip.asked import Asked
from serve_apps.oip.codec import HEADER_LENGTH, MAX_JSON_BYTES, InferRequest, decode, encode_response, wanted_outputs
from serve_apps.oip.served import Host, Served, missing, served_by
from serve_apps.oip.templates import Template, raw_parts
from serve_apps.oip.tensors import raw_bytes
from serve_apps.oip.wishes import in_headers

Arrays = dict[str, NDArray[np.generic]]
MAX_BODY_BYTES = 16 << 20
_LENGTH = HEADER_LENGTH.encode()
_JSON = b"content-type: application/json\r\n"
_OCTETS = b"application/octet-stream"
_log = logging.getLogger("ray.serve")


class _Memo:
    """What a head says, for one set of models."""

    __slots__ = (
        "_request", "json_bytes", "models", "no_json", "octets_back", "picture", "raw", "row_bytes", "row_dtype",
        "row_name", "row_shape", "served", "taken", "templates", "wishes",
    )  # fmt: skip

    def __init__(self, head: Head, served: Served, models: tuple[Model, ...]) -> None:
        """Raises InvalidRequest for wishes that are none."""
        self.served = served
        self.models = models
        self.taken = False
        self.wishes = in_headers(head.headers)
        self.templates = served.templates(self.wishes)
        length = head.headers.get(_LENGTH)
        kind = head.headers.get(b"content-type", b"")
        says_length = length is not None and length.isdigit() and len(length) < 16
        self.json_bytes = int(length) if says_length and length is not None else 0
        self.no_json = says_length and not self.json_bytes
        self.raw = self.no_json or (length is None and kind == _OCTETS)
        self.picture = length is None and kind.startswith(b"image/")
        plain_body = length is None and (self.raw or self.picture)
        self.octets_back = plain_body and len(served.outputs) == 1 and head.headers.get(b"accept") == _OCTETS
        spec = served.inputs[0]
        self.row_name, self.row_shape = spec.name, (1, *spec.shape[1:])
        self.row_dtype = NUMPY_OF_DATATYPE[spec.datatype]
        plain = len(served.inputs) == 1 and spec.shape[:1] == (-1,) and self.row_dtype.kind in "iuf"
        plain = plain and all(size > 0 for size in self.row_shape)
        self.row_bytes = math.prod(self.row_shape) * self.row_dtype.itemsize if plain else -1
        self._request: InferRequest | None = None

    @property
    def request(self) -> InferRequest:
        """Of bodies that say nothing but their tensor. Raises InvalidRequest if the outputs cannot be sent so."""
        if self._request is None:
            outputs = wanted_outputs(None, self.octets_back or self.no_json, self.served.outputs)
            self._request = InferRequest(None, {}, outputs, self.wishes)
        return self._request


class Inference(Asked):
    """On its way, asked over HTTP."""

    __slots__ = ("_octets_back", "_reply", "_request", "_served", "_template")

    def __init__(
        self, host: Host, memo: _Memo, request: InferRequest, inputs: Arrays, template: Template | None, reply: Reply,
        *, spent_s: float = 0.0,
    ) -> None:  # fmt: skip
        """`spent_s` of its time is over."""
        super().__init__(host, memo.served, memo.models, request.wishes, inputs, spent_s=spent_s)
        self._served = memo.served
        self._request = request
        self._template = template
        self._octets_back = memo.octets_back
        self._reply = reply

    def finish(self, outcome: Answer | SluiceError) -> None:
        """Answer it."""
        try:
            answer = refusal(outcome) if isinstance(outcome, SluiceError) else self._encoded(outcome)
        except SluiceError as error:
            answer = refusal(error)
        except Exception:
            answer = unexpected("the answer to an inference")
        self._reply(*answer)

    def _encoded(self, answer: Answer) -> tuple[int, bytes, bytes]:
        outputs, model = answer
        lines = self._served.lines[model]
        if self._octets_back:
            [array] = outputs.values()
            body = raw_bytes(array)
            return 200, b"content-type: %s\r\n%scontent-length: %d\r\n" % (_OCTETS, lines, len(body)), body
        template = self._template
        parts = raw_parts(self._request, outputs) if template is not None else None
        if template is None or parts is None:
            body, json_bytes = self._body(outputs, model)
            return 200, _lines(lines, json_bytes, len(body)), body
        key = (model, *(array.shape for array in outputs.values()))
        text = template.answers.get(key)
        if text is None:
            body, json_bytes = self._body(outputs, model)
            text = template.answers[key] = body[:json_bytes]
        body = b"".join((text, *parts))
        return 200, _lines(lines, len(text), len(body)), body

    def _body(self, outputs: Mapping[str, NDArray[np.generic]], model: Model) -> tuple[bytes, int | None]:
        name = self._served.model_name
        return encode_response(name, model.version, self._request, outputs, {"variant": model.name})


class _Picture:
    """A picture on its way to being a tensor, and then that tensor's inference."""

    def __init__(self, host: Host, memo: _Memo, body: bytes, reply: Reply) -> None:
        """Raises SluiceError if it can't be begun."""
        if host.decoder is None:
            raise missing(host)
        wanted = picture_input(memo.served.inputs)
        self._request = memo.request  # refuses what cannot be answered before anything is decoded
        self._host, self._memo, self._reply, self._name = host, memo, reply, wanted.name
        self._inference: Inference | None = None
        self._began = time.monotonic()
        self._decoding = host.decoder.submit(body, lambda body: from_picture(body, wanted), self._decoded)

    def _decoded(self, outcome: NDArray[np.generic] | SluiceError) -> None:
        try:
            if isinstance(outcome, SluiceError):
                raise outcome
            spent_s = time.monotonic() - self._began
            memo, inputs = self._memo, {self._name: outcome}
            timeout_s = memo.wishes.timeout_s or self._host.default_timeout_s
            if timeout_s is not None and timeout_s <= spent_s:
                raise self._host.expired("the timeout ran out while the picture was decoded")
            check_inputs(memo.served.inputs, inputs)
            inference = Inference(self._host, memo, self._request, inputs, None, self._reply, spent_s=spent_s)
            self._host.put(inference)
            self._inference = inference
        except SluiceError as error:
            self._reply(*refusal(error))
        except Exception:
            self._reply(*unexpected("the inference of a picture"))

    def cancel(self) -> None:
        if self._inference is None:
            self._decoding.cancel()
        else:
            self._inference.cancel()


def _lines(lines: bytes, json_bytes: int | None, size: int) -> bytes:
    if json_bytes is None:
        return b"%s%scontent-length: %d\r\n" % (_JSON, lines, size)
    return b"content-type: %s\r\n%sinference-header-content-length: %d\r\ncontent-length: %d\r\n" % (
        _OCTETS, lines, json_bytes, size,
    )  # fmt: skip


class Exchange:
    """Where inferences begin. It is what LeanProtocol calls an Endpoint."""

    def __init__(self, host: Callable[[], Host], *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._find = host
        self._found: Host | None = None
        self._max_body_bytes = max_body_bytes

    def _host(self) -> Host:
        """Looked up at the first request: Serve makes the application before the replica."""
        if self._found is None:
            self._found = self._find()
        return self._found

    def takes(self, head: Head) -> bool:
        """Is it an inference, by what is served now, of a size that may be read? Anything else, what is wrong with it
        included, is for the ASGI application to say."""
        host = self._found
        memo = head.memo
        if host is not None and memo is not None and memo.served is host.served:
            return memo.taken  # type: ignore[no-any-return]  # as it was told below
        try:
            served = self._host().served
            if served is None or head.target not in served.targets:
                return False
            memo = self._memo(head, served)
        except SluiceError:
            return False
        json_alone = not (memo.raw or memo.picture or memo.json_bytes)
        memo.taken = head.length <= (min(MAX_JSON_BYTES, self._max_body_bytes) if json_alone else self._max_body_bytes)
        return memo.taken

    def begin(self, head: Head, body: bytes, reply: Reply) -> Pending | None:
        """See Endpoint.begin."""
        inference: Pending
        try:
            host = self._host()
            inference = self._inference(host, head, body, reply)
            if isinstance(inference, Inference):
                host.put(inference)
        except SluiceError as error:
            reply(*refusal(error))
        except Exception:
            reply(*unexpected(f"POST {head.target[:200].decode('latin-1')}"))
        else:
            return inference
        return None

    async def answer(self, head: Head, body: bytes) -> tuple[int, bytes, bytes]:
        """As `begin`, for whoever can wait. Cancelled, it cancels the inference."""
        future: asyncio.Future[tuple[int, bytes, bytes]] = asyncio.get_running_loop().create_future()
        inference = self.begin(head, body, lambda *answer: future.set_result(answer))
        try:
            return await future
        except asyncio.CancelledError:
            if inference is not None and future.cancelled():
                inference.cancel()
            raise

    def _memo(self, head: Head, served: Served) -> _Memo:
        """Raises UnknownModel if what it asks for is not served, InvalidRequest for wishes that are none."""
        memo: _Memo | None = head.memo
        if memo is None or memo.served is not served:
            models = served.targets.get(head.target)
            if models is None:
                versions = ", ".join(model.version for model in served.models)
                raise UnknownModel(f"{head.target[:200].decode('latin-1')!r} is not here; served: {versions}")
            memo = head.memo = _Memo(head, served, models)
        return memo

    def _inference(self, host: Host, head: Head, body: bytes, reply: Reply) -> Inference | _Picture:
        """Raises SluiceError."""
        served = served_by(host)
        memo = self._memo(head, served)  # of what is served now: it may have been switched while the body came
        json_bytes = memo.json_bytes
        template = memo.templates.of(body, json_bytes) if json_bytes else None
        if template is not None:
            return Inference(host, memo, template.request, served.filled(template.inputs(body)), template, reply)
        if memo.raw:
            if len(body) == memo.row_bytes:  # nearly every one: a single row, nothing left to check
                tensor: NDArray[np.generic] = np.ndarray(memo.row_shape, memo.row_dtype, body)
                return Inference(host, memo, memo.request, {memo.row_name: tensor}, None, reply)
            spec = single_input(served.inputs)
            inputs = served.filled({spec.name: from_raw(body, spec)})
            return Inference(host, memo, memo.request, inputs, None, reply)
        if memo.picture:
            return _Picture(host, memo, body, reply)
        said = head.headers.get(_LENGTH)
        headers = {} if said is None else {HEADER_LENGTH: said.decode("latin-1")}
        request = decode(body, headers, served.outputs, memo.wishes)
        served.check(request.inputs)
        # From `served` to here nothing was awaited: the models that checked the inputs are those that execute them.
        if json_bytes:
            memo.templates.learn(body, json_bytes, request)
        return Inference(host, memo, request, served.filled(request.inputs), None, reply)


def refusal(error: SluiceError) -> tuple[int, bytes, bytes]:
    """An error as the protocol has it."""
    text, retry_after_s = refusals.told(error)
    body = orjson.dumps({"error": text})
    retry = b"" if retry_after_s is None else b"retry-after: %d\r\n" % retry_after_s
    return error.http_status, b"%s%scontent-length: %d\r\n" % (_JSON, retry, len(body)), body


def unexpected(what: str) -> tuple[int, bytes, bytes]:
    """The answer to a fault of ours, which is being handled."""
    _log.exception("%s failed", what)
    return refusal(SluiceError(refusals.UNEXPECTED))
