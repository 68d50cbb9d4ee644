"""Slo: what users are promised: accuracy, latency, rate, within a budget. One YAML file, checked before anything runs.

    model_name: classifier
    accuracy: {max_drop: 0.005}          # at most half a point below the trained model; or {minimum: 0.91}; or both
    latency_p99_ms: 50
    rate_rps: 400                        # or trace: {path: promotion.csv, scale: 1.0}; or neither
    budget: {cores: 4, memory_mib: 4096}
    objective: min_cost                  # or max_rate (the default), or min_latency

Contradictions are refused in two steps: those within the file when it is read, those with the machine and the trained
model (`refuse_impossible`) before the first measurement.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster import stats
from cluster.errors import ConfigError
from cluster.load.arrivals import RateTrace, read_trace_csv
from cluster.stats import Verdict
from cluster.variants import Accuracy

Objective = Literal["max_rate", "min_latency", "min_cost"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, given: Any) -> Any:
        if isinstance(given, bool):  # YAML's "no" is false, which would count as 0
            raise ValueError("is on or off, and no field of an SLO is; write a number, or leave the field out")
        return given


class AccuracyFloor(_Strict):
    """Relative to the trained model at the top of the lineage, absolute, or both; 0.005 is half a point."""

    max_drop: float | None = Field(default=None, ge=0, lt=1)
    minimum: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _default(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("max_drop") is None and given.get("minimum") is None:
            return given | {"max_drop": 0.005}
        return given

    def verdict(self, accuracy: Accuracy | None) -> Verdict:
        """Does it hold, one-sided 95%? What was not measured, or on too few samples to tell, is "unclear".

        The trained model itself, which is compared with nothing, holds every relative floor.
        """
        if accuracy is None:
            return "unclear"
        verdicts: list[Verdict] = []
        if self.max_drop is not None and accuracy.to_root is not None:
            verdicts.append(stats.judge_relative(accuracy.to_root.bounds, self.max_drop))
        if self.minimum is not None:
            verdicts.append(stats.judge_absolute(accuracy.correct, accuracy.total, self.minimum))
        return next((v for v in ("fails", "unclear") if v in verdicts), "holds")

    def __str__(self) -> str:
        relative = "" if self.max_drop is None else f"at most {100 * self.max_drop:.4g} points below the trained model"
        absolute = "" if self.minimum is None else f"at least {100 * self.minimum:.4g}%"
        return " and ".join(part for part in (relative, absolute) if part)


@functools.lru_cache(maxsize=4)
def _read_trace(path: Path, changed_ns: int) -> RateTrace:
    return read_trace_csv(path)


class TraceRate(_Strict):
    """A recorded load: CSV as `cluster.load.arrivals.read_trace_csv` reads it, its rates times `scale`."""

    path: Path
    scale: float = Field(default=1.0, gt=0)

    def read(self) -> RateTrace:
        """Raises ConfigError if it is not there or no trace. An unchanged file is read once: a search asks for each
        configuration."""
        try:
            trace = _read_trace(self.path, self.path.stat().st_mtime_ns)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"trace.path={self.path} cannot be read ({error}); name a CSV of rates") from error
        return RateTrace(trace.rates_rps * self.scale, trace.bin_s)


class Budget(_Strict):
    """What may be used in all, over all replicas; None: what the machine has for servers."""

    cores: int | None = Field(default=None, ge=1)
    memory_mib: int | None = Field(default=None, ge=1)


class Slo(_Strict):
    """The promise. Rates are requests of one sample per second; refused and failed requests count as late."""

    schema_version: Literal[1] = 1
    model_name: str = Field(default="classifier", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")
    accuracy: AccuracyFloor = AccuracyFloor()
    latency_p99_ms: float = Field(default=50.0, gt=0, le=60_000)
    rate_rps: float | None = Field(default=None, gt=0)
    trace: TraceRate | None = None
    budget: Budget = Budget()
    objective: Objective = "max_rate"

    @model_validator(mode="after")
    def _consistent(self) -> Slo:
        if self.rate_rps is not None and self.trace is not None:
            raise ValueError(f"rate_rps={self.rate_rps:g} and trace={self.trace.path} both say the load; keep one")
        if self.objective != "max_rate" and self.rate_rps is None and self.trace is None:
            raise ValueError(f"objective={self.objective} needs a load to be judged at; set rate_rps or trace")
        return self

    @property
    def latency_p99_s(self) -> float:
        return self.latency_p99_ms / 1e3

    def peak_rps(self) -> float | None:
        """The rate to be held: `rate_rps`, or the busiest bin of the trace. Raises ConfigError as `read` does."""
        if self.trace is not None:
            return float(self.trace.read().rates_rps.max())
        return self.rate_rps

    def refuse_impossible(self, *, cores: int, memory_bytes: int, root: Accuracy | None) -> None:
        """Raise ConfigError for a budget beyond the machine's `cores` and memory for servers, a floor that the trained
        model itself misses, or a trace that asks for nothing."""
        if self.budget.cores is not None and self.budget.cores > cores:
            raise ConfigError(
                f"budget.cores={self.budget.cores} is more than the {cores} that this machine has for servers (one is "
                "the load generator's); lower it, or tune on a larger machine"
            )
        if self.budget.memory_mib is not None and self.budget.memory_mib << 20 > memory_bytes:
            raise ConfigError(
                f"budget.memory_mib={self.budget.memory_mib} is more than the machine's {memory_bytes >> 20}; lower it"
            )
        if root is not None and self.accuracy.minimum is not None and self.accuracy.verdict(root) == "fails":
            raise ConfigError(
                f"accuracy.minimum={self.accuracy.minimum} is above what the trained model itself reaches "
                f"({root.value:.4f}, 95% interval {root.interval[0]:.4f} to {root.interval[1]:.4f}); lower it or train "
                "a better model"
            )
        if self.trace is not None and self.peak_rps() == 0:
            raise ConfigError(f"trace {self.trace.path} holds no request; it asks for nothing")


def load_slo(path: Path | None) -> Slo:
    """The SLO in a YAML file, every default where `path` is None. Raises ConfigError naming file, field and way out.

    A trace's path is relative to the file that names it.
    """
    if path is None:
        return Slo()
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date that is none
        where = " ".join(str(error).split())
        raise ConfigError(f"{path} is no readable YAML ({where}); `sluice init` writes one to start from") from error
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"{str(content)[:100]!r}, not fields"
        raise ConfigError(f"{path} holds {what}; `sluice init` writes one to start from")
    try:
        slo = Slo.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(_told(each) for each in error.errors())}") from error
    if slo.trace is not None:
        there = (path.parent / slo.trace.path).resolve()  # the same from whatever folder a study is gone on with
        slo = slo.model_copy(update={"trace": slo.trace.model_copy(update={"path": there})})
        slo.peak_rps()
    return slo


def _told(error: Any) -> str:
    field = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        *above, _ = error["loc"]
        owner = _PARTS[above[0]] if above else Slo
        inside = f"in {above[0]} " if above else ""
        return f"{field} is no field of an SLO; the fields {inside}are {', '.join(owner.model_fields)}"
    if error["type"] == "missing":
        return f"{field} is missing; write it"
    return f"{field}={repr(error['input'])[:100]}: {message}" if field else message


_PARTS: dict[str, type[BaseModel]] = {"accuracy": AccuracyFloor, "trace": TraceRate, "budget": Budget}
