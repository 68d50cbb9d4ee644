"""Slo: what users are promised: accuracy, latency, rate, within a budget. One YAML file, checked before anything runs.

    model_name: classifier
    accuracy: {max_drop: 0.005}          # at most half a point below the trained model; or {minimum: 0.91}; or both
                                        # of an error: {max_increase: 0.05}; or {maximum: 0.4}; or both
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
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster import stats
from cluster.errors import ConfigError
from cluster.load.arrivals import RateTrace, read_trace_csv
from cluster.stats import Verdict
from cluster.variants import Accuracy, decimals

Objective = Literal["max_rate", "min_latency", "min_cost"]
_MAX_INCREASE = 0.05
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, given: Any) -> Any:
        if isinstance(given, bool):  # YAML's "no" is false, which would count as 0
            raise ValueError("is on or off, and no field of an SLO is; write a number, or leave the field out")
        return given


class AccuracyFloor(_Strict):
    """How much worse than the trained model at the top of the lineage, how good at least, or both.

    Of a figure that is a share (accuracy, roc_auc) `max_drop` and `minimum` decide, of an error (mse, frechet)
    `max_increase` and `maximum`. Of either two the relative one has its default only where neither is given: who names
    another floor means that one.
    """

    max_drop: float | None = Field(default=None, ge=0, lt=1)
    """0.005, the default, is half a point."""
    minimum: float | None = Field(default=None, gt=0, lt=1)
    max_increase: float | None = Field(default=None, ge=0, le=1)
    """Share of the trained model's error by which an error may be larger: 0.05, the default, is 5%."""
    maximum: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _default(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        if given.get("max_drop") is None and given.get("minimum") is None:
            filled["max_drop"] = 0.005
        if given.get("max_increase") is None and given.get("maximum") is None:
            filled["max_increase"] = _MAX_INCREASE
        return filled

    def allowed(self, accuracy: Accuracy) -> float | None:
        """How far below the trained model such a figure may be, as Difference counts it; None: however far."""
        return self.max_drop if accuracy.higher_is_better else self.max_increase

    def verdict(self, accuracy: Accuracy | None) -> Verdict:
        """Does it hold, one-sided 95%? What was not measured, or on too few samples to tell, is "unclear".

        The trained model itself, which is compared with nothing, holds every relative floor.
        """
        if accuracy is None:
            return "unclear"
        verdicts: list[Verdict] = []
        allowed = self.allowed(accuracy)
        if allowed is not None and accuracy.to_root is not None:
            verdicts.append(stats.judge_relative(accuracy.to_root.bounds, allowed))
        if accuracy.higher_is_better and self.minimum is not None:
            verdicts.append(_at_least(accuracy, self.minimum))
        if not accuracy.higher_is_better and self.maximum is not None:
            verdicts.append("unclear" if accuracy.bounds is None else stats.judge_most(accuracy.bounds, self.maximum))
        return next((v for v in ("fails", "unclear") if v in verdicts), "holds")

    def refuse_impossible(self, root: Accuracy) -> None:
        """Raise ConfigError for an absolute floor that the trained model itself misses, or that is about another
        kind of figure than the one by which it is judged."""
        if root.higher_is_better and self.maximum is not None:
            raise ConfigError(
                f"accuracy.maximum={self.maximum} bounds an error, and the model is judged by {root.metric}, of which "
                "more is better; set accuracy.minimum instead"
            )
        if not root.higher_is_better and self.minimum is not None:
            raise ConfigError(
                f"accuracy.minimum={self.minimum} bounds a share, and the model is judged by "
                f"{root.metric}, of which less is better; set accuracy.maximum instead"
            )
        absolute = self.minimum if root.higher_is_better else self.maximum
        if absolute is None or self.verdict(root) != "fails":
            return
        field, side, way = ("minimum", "above", "lower") if root.higher_is_better else ("maximum", "below", "raise")
        value, low, high = (
            decimals(each, higher_is_better=root.higher_is_better) for each in (root.value, *root.interval)
        )
        named = "" if root.metric == "accuracy" else f"{root.metric} "
        raise ConfigError(
            f"accuracy.{field}={absolute} is {side} what the trained model itself reaches ({named}{value}, 95% "
            f"interval {low} to {high}); {way} it or train a better model"
        )

    def of(self, accuracy: Accuracy | None) -> str:
        """What it asks of such a figure, in words."""
        return str(self) if accuracy is None else self.of_figure(higher_is_better=accuracy.higher_is_better)

    def of_figure(self, *, higher_is_better: bool) -> str:
        """What it asks of a share, or of an error, in words."""
        return self._of_shares() if higher_is_better else self._of_errors()

    def _of_shares(self) -> str:
        relative = "" if self.max_drop is None else f"at most {100 * self.max_drop:.4g} points below the trained model"
        absolute = "" if self.minimum is None else f"at least {100 * self.minimum:.4g}%"
        return " and ".join(part for part in (relative, absolute) if part)

    def _of_errors(self) -> str:
        more = self.max_increase
        relative = "" if more is None else f"at most {100 * more:.4g}% above the trained model's error"
        absolute = "" if self.maximum is None else f"an error of at most {self.maximum:.4g}"
        return " and ".join(part for part in (relative, absolute) if part)

    def __str__(self) -> str:
        """Of shares; of errors too, where their floor is not the default one."""
        if self.max_increase == _MAX_INCREASE and self.maximum is None:
            return self._of_shares()
        return f"{self._of_shares()}; where an error is measured, {self._of_errors()}"


def _at_least(accuracy: Accuracy, minimum: float) -> Verdict:
    """By the bounds, or by the count in a manifest from before there were any."""
    if accuracy.bounds is not None:
        return stats.judge_least(accuracy.bounds, minimum)
    if accuracy.correct is None:
        return "unclear"
    return stats.judge_absolute(accuracy.correct, accuracy.total, minimum)


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
    model_name: str = Field(default="classifier", pattern=rf"^{_NAME}$")
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
        if root is not None:
            self.accuracy.refuse_impossible(root)
        if self.trace is not None and self.peak_rps() == 0:
            raise ConfigError(f"trace {self.trace.path} holds no request; it asks for nothing")


def checked_name(model: str) -> str:
    """The name, if a model can be served under it. Raises ConfigError."""
    if re.fullmatch(_NAME, model) is None:
        raise ConfigError(
            f"model={model!r} names no model; use up to 100 letters, digits, dashes, underscores, and dots but first"
        )
    return model


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
