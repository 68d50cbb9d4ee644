"""The central noun: a Variant is a self-contained graph plus a manifest that says what it is and how good it is.

A variant needs no model class to be served: preprocessing (uint8 picture -> normalised tensor) is inside the graph.
Its id is the hash of its content (files, parent, passes, schema), so equal content has one id on every machine:

    >>> spec = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))
    >>> v = Variant(name="cnn/fp32", family="cnn", format="onnx", inputs=(spec,),
    ...             outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),))
    >>> len(v.id)
    16
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, computed_field, model_validator

from cluster.errors import ArtifactError

SCHEMA_VERSION = 2
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,4}$"
"""Names of files and references: no segment is empty, hidden or "..", so a name never leaves its folder."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
Precision = Literal["fp32", "bf16", "int8"]
"""What the bulk of a graph's arithmetic is meant to be done in."""


def canonical_sha256(content: Mapping[str, Any]) -> str:
    """Hex sha256 over the one way to write `content` as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON would make null of them


class TensorSpec(_Frozen):
    """Name, Open Inference Protocol datatype and shape; -1 is a free dimension (the first one is the batch)."""

    name: str
    datatype: Datatype
    shape: tuple[Annotated[int, Field(ge=-1)], ...]


THRESHOLD = TensorSpec(name="threshold", datatype="FP32", shape=(-1,))
"""An autoencoder's answer beside each score: above it the sample is odd."""


class SequenceSpec(_Frozen):
    """Samples of differing lengths: one that is shorter than its batch ends in rows of NaN, and the graph answers as if
    they were not there.

        >>> SequenceSpec(multiple_of=24, shortest=24, longest=336).takes(48)
        True
    """

    axis: Literal[1] = 1
    """Of the first input, whose shape has -1 there; 0 is the batch."""
    multiple_of: int = Field(default=1, ge=1)
    """Rows that the graph reads at once."""
    shortest: int = Field(ge=1)
    longest: int = Field(ge=1)
    """What it was trained on, and its accuracy measured at."""

    @model_validator(mode="after")
    def _in_whole_steps(self) -> SequenceSpec:
        if self.shortest > self.longest or self.shortest % self.multiple_of or self.longest % self.multiple_of:
            raise ValueError(
                f"shortest={self.shortest} and longest={self.longest} must be multiples of "
                f"multiple_of={self.multiple_of}, the shorter one first"
            )
        return self

    def takes(self, rows: int) -> bool:
        """Is that the length of a sample?"""
        return self.shortest <= rows <= self.longest and rows % self.multiple_of == 0

    def freed(self, spec: TensorSpec) -> TensorSpec:
        """The input with that axis free."""
        shape = (-1 if axis == self.axis else size for axis, size in enumerate(spec.shape))
        return spec.model_copy(update={"shape": tuple(shape)})


class ArtifactFile(_Frozen):
    """One file of a variant; its bytes lie in the store under their sha256."""

    path: str = Field(pattern=NAME)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Pass(_Frozen):
    """One step that made this variant out of its parent, with its parameters."""

    name: str
    params: dict[str, JsonValue] = Field(default_factory=dict)


class Difference(_Frozen):
    """This variant against `other_id` on the same samples (paired); negative is worse, whatever is measured.

    Of a share (accuracy, roc_auc) this one's minus the other's, in fractions: 0.005 is half a point. Of an error (mse,
    frechet) by how much it is smaller, as a share of the other's, (other - this) / other: -0.05 is an error that is 5%
    larger. Each measured in the runtime that its Accuracy names.
    """

    other_id: str
    value: float
    interval: tuple[float, float]
    """Two-sided 95%."""
    bounds: tuple[float, float]
    """One-sided 95% each, below and above: what a floor is judged on."""
    relative: bool = False
    """Is it a share of the other's error?"""
    worst_class_drop: float | None = None
    """The largest loss in any one class; negative if every class gained; None where there are no classes."""


class Accuracy(_Frozen):
    """How good the answers are: a share (accuracy, roc_auc) or an error (mse, frechet), by the model's family.

    Measured on the full test set in the runtime that will serve it (docs: benchmarks/PROTOCOL.md). Its judge
    (train_jobs/judges) says how the interval comes about: of an accuracy it is Jeffreys'.
    """

    metric: str = "accuracy"
    higher_is_better: bool = True
    """True of a share, which lies in 0..1; False of an error."""
    value: float
    correct: int | None = None
    """Right answers; None where answers are not simply right or wrong."""
    total: int
    """Samples."""
    interval: tuple[float, float]
    """Two-sided."""
    bounds: tuple[float, float] | None = None
    """One-sided each, below and above: what an absolute floor is judged on. None in manifests from before there were
    any; their counts tell."""
    confidence: float = 0.95
    dataset: str
    runtime: str
    to_parent: Difference | None = None
    to_root: Difference | None = None
    """Against the trained model at the top of the lineage: small losses add up unseen from parent to parent."""


def decimals(value: float, *, higher_is_better: bool = True) -> str:
    """Four decimals of a share; four digits of an error, which may be of any size."""
    return f"{value:.4f}" if higher_is_better else f"{value:.4g}"


def figure(metric: str, value: float, *, higher_is_better: bool) -> str:
    """0.9105; "mse 0.3121" of anything but an accuracy."""
    told = decimals(value, higher_is_better=higher_is_better)
    return told if metric == "accuracy" else f"{metric} {told}"


class Variant(_Frozen):
    """The manifest. Everything but `name`, `accuracies`, `thresholds`, `provenance` and `created_at` goes into `id`."""

    schema_version: int = SCHEMA_VERSION
    name: str
    family: str
    parent_id: str | None = None
    passes: tuple[Pass, ...] = ()
    format: Literal["onnx", "torch_export"]
    precision: Precision = "fp32"
    """A runtime that can choose computes in it."""
    files: tuple[ArtifactFile, ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sequence: SequenceSpec | None = None
    """None where every sample has the one size that `inputs` says."""
    prior: Literal["normal"] | None = None
    """What the first input, rows of numbers, is a draw from: a request may send a seed in its place."""
    labels: tuple[str, ...] = ()
    preprocessing: str = ""
    accuracies: tuple[Accuracy, ...] = ()
    """One for each runtime that it was measured in, the one that it was made for first."""
    thresholds: dict[str, float] = Field(default_factory=dict)
    """Of a variant with the output THRESHOLD: what it says, by the runtime that it was found in; in any other, what the
    graph says."""
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @model_validator(mode="after")
    def _says_its_thresholds(self) -> Self:
        if self.thresholds and THRESHOLD not in self.outputs:
            raise ValueError(f"thresholds={self.thresholds} of {self.name}, whose outputs have no {THRESHOLD}")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the sha256 over the canonical JSON of the content; hashed once, every answer bears it.
        """
        content = self.model_dump(
            mode="json",
            include={
                "schema_version", "family", "parent_id", "passes", "format", "precision", "files", "inputs", "outputs",
                "labels", "preprocessing",
            },
        )
        if self.sequence is not None:  # ids from before there was such a field stay what they were
            content["sequence"] = self.sequence.model_dump(mode="json")
        if self.prior is not None:
            content["prior"] = self.prior
        return canonical_sha256(content)[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """pydantic's, which would hand the old content's hash to a copy with new content."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("id", None)
        return copied

    @property
    def accuracy(self) -> Accuracy | None:
        """In the runtime that it was made for; None if it was never measured."""
        return self.accuracies[0] if self.accuracies else None

    def accuracy_in(self, runtime: str) -> Accuracy | None:
        """In that very runtime, None if it was not measured there: executors round differently."""
        return next((accuracy for accuracy in self.accuracies if accuracy.runtime == runtime), None)

    def example_shape(self, spec: TensorSpec, rows: int) -> tuple[int, ...]:
        """What an input's shape is for a batch of `rows`: its longest sequences, and 1 along any other free axis."""
        sizes = [rows, *(max(size, 1) for size in spec.shape[1:])]
        if self.sequence is not None and spec == self.inputs[0]:
            sizes[self.sequence.axis] = self.sequence.longest
        return tuple(sizes)

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)

    @property
    def model_file(self) -> ArtifactFile:
        """The graph itself: the one file called model.*. Raises ArtifactError unless there is exactly one."""
        named = [f for f in self.files if f.path.startswith("model.")]
        if len(named) != 1:
            raise ArtifactError(
                f"variant {self.name} has {len(named)} files called model.* among {[f.path for f in self.files]}; "
                "it must have one, make it again"
            )
        return named[0]
