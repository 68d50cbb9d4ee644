"""Which variants are made, and by which passes: typed, composed in order, read from YAML.

    variants:
      int8: [int8]
      pruned-int8: [{prune: {ratio: 0.5}}, int8]
      student: [{distill: {width: 0.5}}, {int8: {calibration: entropy}}]

Each list starts from the trained model. Passes on the module come first, for a graph cannot be trained; then those on
its ONNX graph. A variant whose list begins with another's is that one's child.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from cluster.errors import ConfigError
from cluster.variants import Precision
from train_jobs.compression.cast import CastConfig
from train_jobs.compression.dynamic import DynamicConfig
from train_jobs.compression.early_exit import EarlyExitConfig
from train_jobs.compression.equalise import EqualiseConfig
from train_jobs.compression.finetune import FinetuneConfig
from train_jobs.compression.low_rank import LowRankConfig
from train_jobs.compression.mixed import MixedConfig
from train_jobs.compression.optimise import OptimiseConfig
from train_jobs.compression.prune import PruneConfig
from train_jobs.compression.qat import QatConfig
from train_jobs.compression.quantize import QuantizeConfig
from train_jobs.compression.sparsify import SparsifyConfig
from train_jobs.compression.student import DistillConfig
from train_jobs.compression.weight_only import WeightOnlyConfig


@dataclass(frozen=True)
class Kind:
    """A pass by its name in a spec. `manifest`: what stands in the variant's manifest; `precision`: what its graph
    computes in afterwards, None: as before."""

    name: str
    stage: Literal["module", "graph"]
    config: type[BaseModel]
    manifest: str
    precision: Precision | None
    does: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("prune", "module", PruneConfig, "prune_channels", None,
             "whole channels, or hidden units of an LSTM, go; what is left is fine-tuned"),
        Kind("sparsify", "module", SparsifyConfig, "sparsify", None,
             "single weights become zero, by magnitude or two of four, and stay it through fine-tuning"),
        Kind("low_rank", "module", LowRankConfig, "low_rank", None,
             "matrices and kernels become products of two smaller ones"),
        Kind("distill", "module", DistillConfig, "distill", None,
             "a narrower network learns from the trained one"),
        Kind("finetune", "module", FinetuneConfig, "finetune", None,
             "some more epochs, perhaps with the trained model's answers"),
        Kind("qat", "module", QatConfig, "quantization_aware_training", "int8",
             "training with the rounding of int8 in every pass, then int8"),
        Kind("early_exit", "module", EarlyExitConfig, "early_exit", None,
             "easy samples leave the CNN behind its first block, when a small head is sure of them"),
        Kind("equalise", "graph", EqualiseConfig, "equalise", None,
             "channels of neighbouring layers share their range, so that int8 loses less"),
        Kind("int8", "graph", QuantizeConfig, "quantize_static_int8", "int8",
             "weights and activations in int8, calibrated on training samples"),
        Kind("int8_mixed", "graph", MixedConfig, "quantize_mixed", "int8",
             "int8, but for the layers that cost too much"),
        Kind("int8_dynamic", "graph", DynamicConfig, "quantize_dynamic_int8", "int8",
             "matrices and LSTM cells in int8, activations measured as they come"),
        Kind("weight_only", "graph", WeightOnlyConfig, "quantize_weights", None,
             "weights stored in 8 (whole or fp8) or 4 bits, computed in fp32"),
        Kind("bf16", "graph", CastConfig, "cast_bf16", "bf16", "weights in bf16"),
        Kind("fp16", "graph", CastConfig, "cast_fp16", None, "weights stored in fp16"),
        Kind("optimise", "graph", OptimiseConfig, "optimise_graph", None,
             "batch norms folded and nodes fused, ahead of time"),
    )
}  # fmt: skip
_NEW_WEIGHTS = {"low_rank", "distill"}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Step(BaseModel):
    """One pass with its settings. Written "int8", or {"int8": {"calibration": "entropy"}}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    config: SerializeAsAny[BaseModel]

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {given: {}}
        if not isinstance(given, Mapping):
            raise ValueError(f"{given!r} is no pass; write its name, or {{name: {{field: value}}}}")
        if set(given) == {"kind", "config"}:
            given = {given["kind"]: given["config"]}
        if len(given) != 1:
            raise ValueError(f"{dict(given)!r} names {len(given)} passes; each entry of a list is one of them")
        ((name, fields),) = given.items()
        if name not in KINDS:
            raise ValueError(f"{name!r} is no pass; passes: {', '.join(KINDS)}")
        made = fields if isinstance(fields, BaseModel) else KINDS[name].config.model_validate(fields or {})
        return {"kind": name, "config": made}

    @property
    def of(self) -> Kind:
        return KINDS[self.kind]


Steps = Annotated[tuple[Step, ...], Field(min_length=1)]


class CompressSpec(BaseModel):
    """Names of variants, and the passes that make each of them out of the trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: dict[Annotated[str, Field(pattern=_NAME)], Steps] = {}
    """None: the trained model alone, and its graph."""

    @classmethod
    def of(cls, variants: Mapping[str, Sequence[Any]]) -> CompressSpec:
        """{"small": ["prune", {"int8": {"calibration": "entropy"}}]} -> the spec. Raises pydantic's ValidationError."""
        return cls.model_validate({"variants": variants})

    def without(self, kinds: Sequence[str]) -> CompressSpec:
        """Less every variant that one of these passes makes. Raises ConfigError for a pass that there is not."""
        check_passes(kinds)
        kept = {name: steps for name, steps in self.variants.items() if not {s.kind for s in steps} & set(kinds)}
        return CompressSpec(variants=kept)

    def depth(self, name: str) -> int:
        """How many others' passes this variant's begin with."""
        steps = self.variants[name]
        return sum(steps[: len(other)] == other for other in self.variants.values() if len(other) < len(steps))

    @model_validator(mode="after")
    def _in_order(self) -> CompressSpec:
        for name, steps in self.variants.items():
            if name in ("fp32", "fp32-torch"):
                raise ValueError(f"{name} is what all others start from; give the variant another name")
            stages = [step.of.stage for step in steps]
            if "module" in stages[stages.index("graph") :] if "graph" in stages else False:
                late = next(s.kind for i, s in enumerate(steps) if s.of.stage == "module" and "graph" in stages[:i])
                raise ValueError(f"{name}: {late} trains a module and cannot follow a pass on the graph; put it first")
            kinds = [step.kind for step in steps]
            if "sparsify" in kinds and (new := set(kinds[kinds.index("sparsify") :]) & _NEW_WEIGHTS):
                raise ValueError(
                    f"{name}: {sorted(new)[0]} makes new weights, and what sparsify set to zero would be gone; put "
                    "sparsify after it"
                )
            narrow = [step.kind for step in steps if step.of.precision is not None]
            if len(narrow) > 1:
                raise ValueError(f"{name}: {' and '.join(narrow)} each set the precision; keep one of them")
            if "qat" in [step.kind for step in steps[:-1]]:
                raise ValueError(f"{name}: qat makes the int8 graph itself; put it last")
            if "early_exit" in [s.kind for s, after in itertools.pairwise(steps) if after.of.stage == "module"]:
                raise ValueError(f"{name}: early_exit makes the graph itself; put passes on the module before it")
        return self


def check_passes(kinds: Sequence[str]) -> None:
    """Raise ConfigError for a pass that there is not."""
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ConfigError(f"without={unknown} names no pass; passes: {', '.join(KINDS)}")


def default_spec(family: str) -> CompressSpec:
    """What `sluice compress` makes unless told otherwise. A recurrent cell has no static int8: its state would need
    ranges of its own at every step."""
    int8 = "int8_dynamic" if family in ("lstm", "rnn") else "int8"
    return CompressSpec.of(
        {"int8": [int8], "bf16": ["bf16"], "pruned": ["prune"], "pruned-int8": ["prune", int8]}
    )


def lean_int8() -> list[Any]:
    """Pruned and int8, with an accuracy near the trained model's: a short training at a low rate before, which the
    model has to spare for what follows, a long one after pruning, and one more at a low rate with the trained model as
    a teacher. What pruning itself removes is its default."""
    gentle = {"epochs": 3, "lr": 5e-4}
    return [
        {"finetune": gentle}, {"prune": {"finetune": {"epochs": 8, "lr": 2e-3}}},
        {"finetune": {**gentle, "teacher": 0.5, "temperature": 2}}, "int8",
    ]  # fmt: skip


def exit_int8() -> list[Any]:
    """The same short training before an early exit that few samples are lost at, and int8: the small CNN alone."""
    return [{"finetune": {"epochs": 3, "lr": 5e-4}}, {"early_exit": {"max_drop": 0.001}}, "int8"]


NAMED = {"lean-int8": lean_int8, "exit-int8": exit_int8}
"""Variants that `--variant NAME` makes: several passes whose settings were found together (docs/results)."""


def load_spec(path: Path) -> CompressSpec:
    """From YAML. Raises ConfigError naming the file, the field, its value and what is allowed."""
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"spec={path} cannot be read ({error}); name a YAML file of variants and passes") from error
    return parsed(given, where=str(path))


def parsed(given: Any, *, where: str) -> CompressSpec:
    """A spec from plain values. Raises ConfigError as `load_spec` does."""
    try:
        return CompressSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {field or 'spec'}: {message}") from error


def chosen(path: Path | None, shorthand: Sequence[str]) -> CompressSpec | None:
    """The spec of a file, or of "NAME=PASS,PASS" strings or names in NAMED, or both; None: neither is given. Raises
    ConfigError."""
    if path is None and not shorthand:
        return None
    variants: dict[str, Any] = dict(load_spec(path).variants) if path is not None else {}
    for text in shorthand:
        name, equals, passes = text.partition("=")
        if not equals and text in NAMED:
            variants[text] = NAMED[text]()
            continue
        if not equals:
            raise ConfigError(
                f"variant {text!r} is no NAME=PASS,PASS and none of {', '.join(NAMED)}; passes: {', '.join(KINDS)}"
            )
        variants[name] = [each.strip() for each in passes.split(",")]
    return parsed({"variants": variants}, where="--variant" if shorthand else str(path))
