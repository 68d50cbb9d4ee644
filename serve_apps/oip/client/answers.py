"""What a server says, as values: its JSON -> frozen dataclasses.

A field that a server leaves out is empty or nought here, for servers of other makes say less; `raw` holds all that was
said. What is there in a wrong form is a ProtocolError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ProtocolError

T = TypeVar("T")


@dataclass(frozen=True)
class ServerMetadata:
    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class TensorMetadata:
    """-1 in a shape is a free size; the first is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class ModelConfig:
    """How a model is served. Tensors as metadata has them, but without the batch dimension."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: Mapping[str, str]
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Duration:
    """How often something was done, and the nanoseconds that it took together (0 where the server does not say)."""

    count: int
    ns: int


@dataclass(frozen=True)
class ModelStatistics:
    """Since the server's start, of the replica that was asked."""

    name: str
    version: str
    inference_count: int
    """Rows."""
    execution_count: int
    """Batches."""
    success: Duration
    fail: Duration
    cancel: Duration
    batches: Mapping[int, int]
    """Batch size -> executions."""
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class RepositoryModel:
    """What the server could serve, and whether it does."""

    name: str
    version: str
    state: str
    """READY, UNAVAILABLE and so on; empty where the server does not say."""
    reason: str


@dataclass(frozen=True)
class InferAnswer:
    """The outputs by name, and who made them. Arrays are views of what came over the wire: copy one to write to it."""

    model: str
    version: str
    variant: str
    """Empty from servers that have no variants."""
    id: str | None
    outputs: Mapping[str, NDArray[np.generic]]
    parameters: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        """Raises KeyError naming the outputs that there are."""
        try:
            return self.outputs[name]
        except KeyError:
            raise KeyError(f"no output {name!r}; the answer has {sorted(self.outputs)}") from None


def server_metadata(said: Any) -> ServerMetadata:
    of = _Said(said, "server metadata")
    return ServerMetadata(of.get("name", str), of.get("version", str), tuple(of.each("extensions", str)))


def model_metadata(said: Any) -> ModelMetadata:
    of = _Said(said, "model metadata")
    return ModelMetadata(
        of.get("name", str), tuple(of.each("versions", str)), of.get("platform", str), _tensors(of, "inputs"),
        _tensors(of, "outputs"),
    )  # fmt: skip


def model_config(said: Any) -> ModelConfig:
    """In Triton's form."""
    of = _Said(said, "model configuration")
    parameters = {name: _Said(each, "parameter").get("string_value", str) for name, each in of.map("parameters")}
    return ModelConfig(
        of.get("name", str), of.get("platform", str), of.get("backend", str), of.get("max_batch_size", int),
        _configured(of, "input"), _configured(of, "output"), parameters, said,
    )  # fmt: skip


def model_statistics(said: Any) -> tuple[ModelStatistics, ...]:
    """In Triton's form: one entry for each model and version."""
    return tuple(_statistics(each) for each in _Said(said, "statistics").each("model_stats", dict))


def repository_index(said: Any) -> tuple[RepositoryModel, ...]:
    """In Triton's form: a list."""
    if type(said) is not list:
        raise ProtocolError(f"the repository index is a {type(said).__name__} in JSON; it must be a list")
    entries = [_Said(each, "an entry of the repository index") for each in said]
    return tuple(
        RepositoryModel(of.get("name", str), of.get("version", str), of.get("state", str), of.get("reason", str))
        for of in entries
    )


def infer_answer(said: Mapping[str, Any], outputs: Mapping[str, NDArray[np.generic]]) -> InferAnswer:
    """Of the JSON part of an answer, and its tensors."""
    of = _Said(said, "the answer")
    parameters = dict(of.map("parameters"))
    variant = parameters.get("variant", "")
    return InferAnswer(
        of.get("model_name", str), of.get("model_version", str), variant if type(variant) is str else "",
        of.get("id", str) or None, outputs, parameters,
    )  # fmt: skip


def _tensors(of: _Said, key: str) -> tuple[TensorMetadata, ...]:
    return tuple(
        TensorMetadata(each.get("name", str), each.get("datatype", str), tuple(each.each("shape", int)))
        for each in (_Said(entry, f"an entry of {key}") for entry in of.each(key, dict))
    )


def _configured(of: _Said, key: str) -> tuple[TensorMetadata, ...]:
    found = []
    for each in (_Said(entry, f"an entry of {key}") for entry in of.each(key, dict)):
        datatype = each.get("data_type", str).removeprefix("TYPE_")
        shape = tuple(each.each("dims", int))
        found.append(TensorMetadata(each.get("name", str), "BYTES" if datatype == "STRING" else datatype, shape))
    return tuple(found)


def _statistics(said: Mapping[str, Any]) -> ModelStatistics:
    of = _Said(said, "an entry of model_stats")
    times = _Said(of.get("inference_stats", dict), "inference_stats")
    batches = {}
    for each in (_Said(entry, "an entry of batch_stats") for entry in of.each("batch_stats", dict)):
        batches[each.get("batch_size", int)] = _duration(each, "compute_infer").count
    return ModelStatistics(
        of.get("name", str), of.get("version", str), of.get("inference_count", int), of.get("execution_count", int),
        _duration(times, "success"), _duration(times, "fail"), _duration(times, "cancel"), batches, said,
    )  # fmt: skip


def _duration(of: _Said, key: str) -> Duration:
    each = _Said(of.get(key, dict), key)
    return Duration(each.get("count", int), each.get("ns", int))


class _Said:
    """A JSON object that must be one, and its fields by their types."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise ProtocolError(f"{what} is a {type(value).__name__} in JSON; it must be an object")
        self._value, self._what = value, what

    def get(self, key: str, kind: type[T]) -> T:
        """The field, or the type's empty value if it is not there. 64-bit integers may come as strings, as protobuf
        writes them in JSON."""
        value = self._value.get(key)
        if value is None:
            return kind()
        if kind is int and type(value) is str and value.lstrip("-").isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is not kind:
            raise ProtocolError(f"{self._what} has {key}={str(value)[:80]!r}; it must be {kind.__name__}")
        return value

    def each(self, key: str, kind: type[T]) -> list[T]:
        """The entries of a list."""
        return [_Said({"": each}, f"{self._what}, {key}").get("", kind) for each in self.get(key, list)]

    def map(self, key: str) -> list[tuple[str, Any]]:
        """The items of an object."""
        return list(self.get(key, dict).items())
