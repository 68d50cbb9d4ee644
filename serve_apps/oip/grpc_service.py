"""GRPCInferenceService: (method, message, time left) -> the batcher -> (status, message), for whoever speaks gRPC.

All six methods of the protocol, and those of Triton's extensions that its clients call: model configuration, statistics
and model repository. What is told of a model is answers.py's, an inference is the same Request in the same batcher as
over REST; only the wire is another.

A client says nearly the same message each time: what one says beside its raw contents is decoded once, and kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from cluster.errors import DeadlineExceeded, InvalidRequest, NotReady, SluiceError, UnknownModel
from serve_apps.executor import Answer, Model
from serve_apps.oip import answers, grpc_codec, grpc_status
from serve_apps.oip.answers import ModelHost
from serve_apps.oip.asked import Asked
from serve_apps.oip.grpc_status import FINE, Status
from serve_apps.oip.proto import health_pb2 as health
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip
from serve_apps.oip.proto import triton_extensions_pb2 as triton
from serve_apps.oip.served import Served, served_by
from serve_apps.oip.templates import Arrays
from serve_apps.oip.tensors import raw_bytes
from serve_apps.oip.wishes import NONE, Wishes, in_headers

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
Reply = Callable[[Status, bytes], None]
_INFER = f"/{SERVICE}/ModelInfer"
_KEPT = 1024
_SERVING, _NOT_SERVING = 1, 2
_MAX_KEPT_BYTES = 4096


class Pending(Protocol):
    """An inference on its way."""

    def cancel(self) -> None:
        """Nobody waits for it any more; its reply will not be called."""


class _Slot(NamedTuple):
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    size: int


class _Seen:
    """Of messages that differ in their raw contents and their id only."""

    __slots__ = ("answers", "asked", "models", "slots")

    def __init__(self, asked: grpc_codec.Decoded, models: tuple[Model, ...]) -> None:
        inputs = asked.request.inputs
        self.slots = [_Slot(name, array.dtype, array.shape, array.nbytes) for name, array in inputs.items()]
        self.asked = asked._replace(request=asked.request._replace(inputs={}, id=None))
        self.models = models
        self.answers: dict[object, bytes] = {}
        """What stands before the raw contents of an answer, by who made it and its shapes."""

    def inputs(self, raws: Sequence[bytes]) -> Arrays | None:
        """Views of the raw contents; None if they do not fit."""
        if len(raws) != len(self.slots):
            return None
        arrays: Arrays = {}
        for (name, dtype, shape, size), raw in zip(self.slots, raws, strict=True):
            if len(raw) != size:
                return None
            arrays[name] = np.ndarray(shape, dtype, raw)
        return arrays


class _Inference(Asked):
    """On its way, asked over gRPC."""

    __slots__ = ("_answer_id", "_asked", "_reply", "_seen", "_served")

    def __init__(
        self, host: ModelHost, served: Served, seen: _Seen, answer_id: str, wished: Wishes, inputs: Arrays,
        reply: Reply,
    ) -> None:  # fmt: skip
        super().__init__(host, served, seen.models, wished, inputs)
        self._served = served
        self._seen = seen
        self._answer_id = answer_id
        self._reply = reply

    def finish(self, outcome: Answer | SluiceError) -> None:
        try:
            if isinstance(outcome, SluiceError):
                raise outcome
            answer = FINE, self._encoded(outcome)
        except SluiceError as error:
            answer = grpc_status.status_of(error), b""
        except Exception:
            answer = grpc_status.unexpected("the answer to an inference"), b""
        self._reply(*answer)

    def _encoded(self, answer: Answer) -> bytes:
        outputs, model = answer
        seen, name = self._seen, self._served.model_name
        if not seen.asked.raw:
            message = grpc_codec.encode(name, model.version, model.name, seen.asked, outputs)
            message.id = self._answer_id
            return message.SerializeToString()  # type: ignore[no-any-return]
        key = (model, *(array.shape for array in outputs.values()))
        before = seen.answers.get(key)
        if before is None:
            message = grpc_codec.encode(name, model.version, model.name, seen.asked, outputs)
            before = seen.answers[key] = message.SerializeToString()
        raws = [raw_bytes(outputs[wanted]) for wanted in seen.asked.request.binary_outputs]
        return b"".join((before, *grpc_codec.tail(self._answer_id, raws)))


class GrpcService:
    """One for a replica. `host` is looked up until it is there: Serve opens the port before the replica is whole."""

    def __init__(self, host: Callable[[], ModelHost]) -> None:
        self._find = host
        self._found: ModelHost | None = None
        self._served: Served | None = None
        self._seen: dict[Any, _Seen] = {}
        told: dict[str, Callable[[bytes], Any]] = {
            "ServerLive": self._server_live, "ServerReady": self._server_ready, "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata, "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config, "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }  # fmt: skip
        self._told = {f"/{SERVICE}/{name}": method for name, method in told.items()}
        self._told[f"/{HEALTH}/Check"] = self._health
        self._changes = {f"/{SERVICE}/RepositoryModel{what}": what for what in ("Load", "Unload")}
        self._changing: set[asyncio.Task[None]] = set()

    def _host(self) -> ModelHost:
        """Raises NotReady."""
        if self._found is None:
            self._found = self._find()
        return self._found

    @property
    def paths(self) -> list[str]:
        """Of the methods that there are."""
        return [_INFER, *self._told, *self._changes]

    def begin(
        self, path: str, body: bytes, reply: Reply, *, timeout_s: float | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Pending | None:  # fmt: skip
        """Call `reply` exactly once, now (then None is returned) or later. Never raises. `timeout_s` is what is left of
        the call's own deadline; `headers` its metadata, if there may be wishes in it."""
        try:
            if path in self._changes:
                self._change(path, body, reply)
                return None
            if path == _INFER:
                return self._infer(body, reply, timeout_s, headers)
            told = self._told.get(path)
            if told is None:
                answer = Status(grpc_status.UNIMPLEMENTED, f"{path[:200]!r} is not here; see {SERVICE}"), b""
            else:
                answer = FINE, told(body).SerializeToString()
        except SluiceError as error:
            answer = grpc_status.status_of(error), b""
        except Exception:
            answer = grpc_status.unexpected(path[:200]), b""
        reply(*answer)
        return None

    def _infer(
        self, body: bytes, reply: Reply, timeout_s: float | None, headers: Mapping[bytes, bytes] | None
    ) -> Pending:
        """Raises SluiceError."""
        host = self._host()
        otherwise = in_headers(headers) if headers else NONE
        message = grpc_codec.parse(body)
        served = served_by(host)
        raws, answer_id, key = list(message.raw_input_contents), message.id, None
        if raws:
            message.ClearField("raw_input_contents")
            message.ClearField("id")
            said = message.SerializeToString()
            key = said if otherwise is NONE else (said, otherwise)
        if served is not self._served:
            self._served = served
            self._seen.clear()
        # From here nothing is awaited: the models that check the inputs are those that execute them.
        seen = self._seen.get(key) if key is not None else None
        inputs = seen.inputs(raws) if seen is not None else None
        if seen is None or inputs is None:
            answers.check_model(host, message.model_name, message.model_version or None)
            asked = grpc_codec.decode(message, raws, served.outputs, otherwise)
            inputs = asked.request.inputs
            served.check(inputs)
            seen = _Seen(asked, _models(served, message.model_version))
            if key is not None and len(said) <= _MAX_KEPT_BYTES and all(a.dtype.kind in "iuf" for a in inputs.values()):
                self._keep(key, seen)
        wished = _within(seen.asked.request.wishes, timeout_s, host)
        inference = _Inference(host, served, seen, answer_id, wished, served.filled(inputs), reply)
        host.put(inference)
        return inference

    def _keep(self, key: Any, seen: _Seen) -> None:
        if len(self._seen) >= _KEPT:
            self._seen.clear()
        self._seen[key] = seen

    def _server_live(self, body: bytes) -> Any:
        return oip.ServerLiveResponse(live=True)

    def _server_ready(self, body: bytes) -> Any:
        try:
            return oip.ServerReadyResponse(ready=self._host().is_ready())
        except NotReady:
            return oip.ServerReadyResponse(ready=False)

    def _health(self, body: bytes) -> Any:
        """gRPC's own health check, as load balancers and Kubernetes do it: of the whole, or of this service."""
        asked = _parsed(health.HealthCheckRequest, body)
        if asked.service not in ("", SERVICE):
            raise UnknownModel(f"service {asked.service[:100]!r} is unknown; this is {SERVICE}")
        ready = self._server_ready(b"").ready
        return health.HealthCheckResponse(status=_SERVING if ready else _NOT_SERVING)

    def _model_ready(self, body: bytes) -> Any:
        asked = _parsed(oip.ModelReadyRequest, body)
        try:
            return oip.ModelReadyResponse(ready=answers.model_ready(self._host(), asked.name, asked.version or None))
        except NotReady:
            return oip.ModelReadyResponse(ready=False)

    def _server_metadata(self, body: bytes) -> Any:
        return oip.ServerMetadataResponse(**answers.SERVER)

    def _model_metadata(self, body: bytes) -> Any:
        return ParseDict(answers.metadata(self._checked(oip.ModelMetadataRequest, body)), oip.ModelMetadataResponse())

    def _model_config(self, body: bytes) -> Any:
        said = answers.configuration(self._checked(triton.ModelConfigRequest, body))
        return ParseDict({"config": said}, triton.ModelConfigResponse(), ignore_unknown_fields=True)

    def _model_statistics(self, body: bytes) -> Any:
        asked = _parsed(triton.ModelStatisticsRequest, body)
        host = self._host()
        if asked.name or asked.version:
            answers.check_model(host, asked.name, asked.version or None)
        said = answers.statistics(host, asked.version or None)
        return ParseDict(said, triton.ModelStatisticsResponse(), ignore_unknown_fields=True)

    def _repository_index(self, body: bytes) -> Any:
        asked = _parsed(triton.RepositoryIndexRequest, body)
        return ParseDict({"models": answers.index(self._host(), ready=asked.ready)}, triton.RepositoryIndexResponse())

    def _change(self, path: str, body: bytes, reply: Reply) -> None:
        """Load or unload. A client that leaves does not undo it. Raises SluiceError."""
        what = self._changes[path]
        loads = what == "Load"
        asked = _parsed(triton.RepositoryModelLoadRequest if loads else triton.RepositoryModelUnloadRequest, body)
        host = self._host()
        answers.check_model(host, asked.model_name)
        parameters = {name: grpc_codec.value_of(value) for name, value in asked.parameters.items()}
        change = host.load(parameters) if loads else host.unload(parameters)
        task = asyncio.get_running_loop().create_task(_told_when_done(change, path, reply))
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)

    def _checked(self, kind: Any, body: bytes) -> ModelHost:
        """The host, if it is that model that is asked about. Raises UnknownModel."""
        asked, host = _parsed(kind, body), self._host()
        answers.check_model(host, asked.name, asked.version or None)
        return host


async def _told_when_done(change: Awaitable[None], path: str, reply: Reply) -> None:
    """Load and Unload answer with an empty message."""
    try:
        await change
        status = FINE
    except SluiceError as error:
        status = grpc_status.status_of(error)
    except Exception:
        status = grpc_status.unexpected(path)
    reply(status, b"")


def _parsed(kind: Any, body: bytes) -> Any:
    if len(body) > 1 << 16:
        raise InvalidRequest(f"a {kind.DESCRIPTOR.name} of {len(body)} bytes is too long; it holds two names")
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the message is no {kind.DESCRIPTOR.name}: {error}") from error


def _models(served: Served, version: str) -> tuple[Model, ...]:
    """Who may execute it."""
    return tuple(model for model in served.models if model.version == version) if version else served.models


def _within(wished: Wishes, timeout_s: float | None, host: ModelHost) -> Wishes:
    """The smaller of a request's own time and of its call's. Raises DeadlineExceeded if that is over."""
    if timeout_s is None:
        return wished
    if timeout_s <= 0:
        raise DeadlineExceeded("the deadline of the call was over before it was read; give it more time")
    own_s = wished.timeout_s or host.default_timeout_s
    return wished._replace(timeout_s=timeout_s if own_s is None else min(own_s, timeout_s))


