"""What a client may ask -> Call: how to say it with the time that is left, and how to read what comes back. No socket.

    calls.infer(...) -> Call -> course.py makes the attempts -> clients.py sends and hears

An answer that is a refusal becomes the error class that the server raised it from (cluster/errors.py), by its status.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster import errors
from cluster.errors import InvalidRequest, ProtocolError, SluiceError
from cluster.scheduling import AccuracyWish
from serve_apps.oip.client import answers
from serve_apps.oip.client.answers import InferAnswer
from serve_apps.oip.codec import decode_answer, encode_request
from serve_apps.oip.compression import compress

T = TypeVar("T")
_KINDS: dict[int, type[SluiceError]] = {
    400: InvalidRequest, 404: errors.UnknownModel, 413: errors.PayloadTooLarge, 500: errors.InferenceFailed,
}  # fmt: skip
_LATER: dict[int, type[errors.QuotaExceeded] | type[errors.Overloaded]] = {
    429: errors.QuotaExceeded, 503: errors.Overloaded,
}  # fmt: skip
_JSON = {"content-type": "application/json"}
_PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


class Message(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """One question."""

    message: Callable[[float | None], Message]
    """Seconds that are left -> what to send; None: no deadline."""
    read: Callable[[Reply], T]
    """Raises SluiceError for a refusal, ProtocolError for what is no answer."""
    idempotent: bool = True
    """Does asking twice do no more than asking once? Such a call is made again where a connection broke before any of
    the answer came: whether the server had begun is not known then."""
    retried: bool = True
    """Is 503 a refusal, to be tried again? Of a question for readiness it is the answer."""


class Wishes(NamedTuple):
    """What an inference asks for beside its tensors; serve_apps/oip/wishes.py says what each means."""

    priority: int | None = None
    accuracy: AccuracyWish | float | None = None
    tenant: str | None = None

    def said(self, left_s: float | None) -> dict[str, Any]:
        """As request parameters."""
        told = {
            "timeout": None if left_s is None else max(1, int(left_s * 1e6)),
            "priority": self.priority, "accuracy": self.accuracy, "tenant": self.tenant,
        }  # fmt: skip
        return {name: value for name, value in told.items() if value is not None}


def infer(
    model: str, inputs: Mapping[str, NDArray[np.generic]], *, outputs: Sequence[str] | None, wishes: Wishes,
    version: str | None, request_id: str | None, binary: bool, gzip: bool,
) -> Call[InferAnswer]:  # fmt: skip
    """Raises InvalidRequest for tensors that cannot be sent."""
    sent = {name: _as_sent(array) for name, array in inputs.items()}
    path = f"{_model(model, version)}/infer"

    def message(left_s: float | None) -> Message:
        body, headers = encode_request(
            sent, binary=binary, id=request_id, parameters=wishes.said(left_s), binary_output=binary, outputs=outputs
        )
        if gzip:
            body, encoding = compress(body, "gzip")
            headers |= {"accept-encoding": "gzip"} | ({} if encoding is None else {"content-encoding": encoding})
        return Message("POST", path, headers, body)

    message(None)  # what cannot be sent is told before anything is
    return Call(message, _inferred)


def infer_picture(
    model: str, picture: bytes, *, content_type: str | None, wishes: Wishes, version: str | None
) -> Call[InferAnswer]:
    """A JPEG or PNG as it lies on disk. Raises InvalidRequest for bytes that begin as neither, unless `content_type`
    says what they are."""
    kind = content_type or next((kind for begin, kind in _PICTURES.items() if picture.startswith(begin)), None)
    if kind is None:
        raise InvalidRequest(
            f"the picture begins with {picture[:4]!r}, neither as a JPEG nor as a PNG; say what it is with content_type"
        )
    path = f"{_model(model, version)}/infer"

    def message(left_s: float | None) -> Message:
        told = {f"sluice-{name}": str(value) for name, value in wishes.said(left_s).items()}
        return Message("POST", path, {"content-type": kind, **told}, picture)

    return Call(message, _inferred)


def is_live() -> Call[bool]:
    return Call(lambda _: _get("/v2/health/live"), _yes_or_no, retried=False)


def is_ready(model: str | None, version: str | None) -> Call[bool]:
    """Of the server, or of one model."""
    path = "/v2/health/ready" if model is None else f"{_model(model, version)}/ready"
    return Call(lambda _: _get(path), _yes_or_no, retried=False)


def server_metadata() -> Call[answers.ServerMetadata]:
    return Call(lambda _: _get("/v2"), lambda reply: answers.server_metadata(_json(reply)))


def metadata(model: str, version: str | None) -> Call[answers.ModelMetadata]:
    return Call(lambda _: _get(_model(model, version)), lambda reply: answers.model_metadata(_json(reply)))


def config(model: str, version: str | None) -> Call[answers.ModelConfig]:
    path = f"{_model(model, version)}/config"
    return Call(lambda _: _get(path), lambda reply: answers.model_config(_json(reply)))


def statistics(model: str, version: str | None) -> Call[tuple[answers.ModelStatistics, ...]]:
    path = f"{_model(model, version)}/stats"
    return Call(lambda _: _get(path), lambda reply: answers.model_statistics(_json(reply)))


def repository_index(*, ready: bool) -> Call[tuple[answers.RepositoryModel, ...]]:
    body = orjson.dumps({"ready": True}) if ready else b"{}"
    return Call(
        lambda _: Message("POST", "/v2/repository/index", dict(_JSON), body),
        lambda reply: answers.repository_index(_json(reply)),
    )


def repository_change(model: str, change: str, parameters: Mapping[str, Any] | None) -> Call[None]:
    """`change` is load or unload. Not idempotent: between two of them somebody else may have changed it back."""
    body = orjson.dumps({"parameters": dict(parameters)} if parameters else {})
    path = f"/v2/repository/models/{quote(model, safe='')}/{change}"
    return Call(lambda _: Message("POST", path, dict(_JSON), body), _nothing, idempotent=False)


def retry_after_s(reply: Reply, now: Callable[[], float] = time.time) -> float | None:
    """What `Retry-After` says, in seconds or as a date (RFC 9110, 10.2.3); None if it says nothing that is known."""
    said = reply.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit() and len(said) < 10:
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - now())
    except (ValueError, OverflowError):
        return None


def _get(path: str) -> Message:
    return Message("GET", path, {}, b"")


def _model(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def _as_sent(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Little-endian and without gaps; text and byte strings of a fixed width as the objects that BYTES are."""
    array = np.asarray(array)
    if array.dtype.kind in "SU":
        return array.astype(object)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def _inferred(reply: Reply) -> InferAnswer:
    _check(reply)
    try:
        said, outputs = decode_answer(reply.body, reply.headers)
    except InvalidRequest as error:
        raise ProtocolError(f"the answer cannot be read: {error}") from error
    return answers.infer_answer(said, outputs)


def _yes_or_no(reply: Reply) -> bool:
    if reply.status == 503:
        return False
    _check(reply)
    return True


def _nothing(reply: Reply) -> None:
    _check(reply)


def _json(reply: Reply) -> Any:
    _check(reply)
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the answer of {len(reply.body)} bytes is no JSON ({error}); check the url") from error


def _check(reply: Reply) -> None:
    """Raises the error that a refusal is."""
    if reply.status == 200:
        return
    told = _told(reply)
    if reply.status == 408:
        raise errors.DeadlineExceeded(told, retry_after_s=retry_after_s(reply))
    if reply.status in _LATER:
        raise _LATER[reply.status](told, retry_after_s=retry_after_s(reply) or 0.0)
    if reply.status in _KINDS:
        raise _KINDS[reply.status](told)
    raise ProtocolError(f"status {reply.status}: {told}")


def _told(reply: Reply) -> str:
    """The server's words."""
    try:
        told = orjson.loads(reply.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        told = None
    if type(told) is str and told:
        return told
    return f"the server answered {reply.status} with {reply.body[:200].decode('latin-1')!r}"
