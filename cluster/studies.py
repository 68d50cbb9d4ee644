"""Study: what a search measured live, trial by trial, and what it was for. Kept so that a kill -9 costs one trial.

    <folder>/study.json            StudyHeader: the question
    <folder>/trials/0007.json      Trial: one configuration, measured once

Every file arrives by atomic rename and is never changed again; a study is resumed by reading what is there.
"""

from __future__ import annotations

import html
import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.errors import ArtifactError, ConfigError
from cluster.plans import Configuration
from cluster.slo import Slo
from cluster.variants import decimals


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LiveFigures(_Frozen):
    """One configuration under load, behind the whole request path. Rates in requests/s, times in s."""

    max_rate_rps: float
    """Closed loop, all connections busy."""
    slo_rate_rps: float | None
    """Highest Poisson rate whose p99 held the bound; None if it was not looked for, or the client could not tell."""
    slo_rate_is_a_floor: bool = False
    """It still held at the highest rate that the client can hold."""
    reference_rate_rps: float
    """The load of all figures below: the SLO's own if it names one, else one that is the same for all trials."""
    latency_p50_s: float | None
    latency_p99_s: float | None
    """None: over 1% were refused or failed."""
    attainment: float
    """Share of requests answered rightly within the bound."""
    error_rate: float
    core_s_per_million: float | None
    """CPU seconds of all server processes per million right answers; None where they cannot be told apart."""
    memory_bytes: int | None
    """Of all replicas: their processes without a model, and what the profile says of runtime and variant."""
    client_cpu_share: float
    p99_by_rate: tuple[tuple[float, float | None], ...] = ()
    """Every judged step of the search for the SLO rate."""
    latency_histogram: str = ""
    """HdrHistogram in microseconds, at the reference load."""


Origin = Literal["baseline", "profiles", "optuna", "confirm", "grid"]


class Trial(_Frozen):
    """One configuration, measured once: one of `figures` and `error`."""

    number: int = Field(ge=1)
    configuration: Configuration
    origin: Origin
    """Who asked for it: the comparison with what one had without a search, the ranking by profiles, the search, the
    confirmation of the best, or a whole grid."""
    seed: int
    figures: LiveFigures | None = None
    error: str | None = None
    started_at: str
    took_s: float

    @model_validator(mode="after")
    def _measured_or_not(self) -> Trial:
        if (self.figures is None) == (self.error is None):
            raise ValueError("a trial has figures or an error, one of the two")
        return self


class StudyHeader(_Frozen):
    """What a study asks. Two with the same `question` may share trials."""

    schema_version: Literal[1] = 1
    name: str
    slo: Slo
    variants: dict[str, str]
    """Names by id."""
    accuracies: dict[str, dict[str, float]]
    """By variant id, then runtime."""
    metric: str = "accuracy"
    """What these figures are."""
    higher_is_better: bool = True
    protocol: dict[str, Any]
    cpus: dict[str, list[int]]
    """Cores of the "server" and of the "client"; empty: not pinned."""
    hardware: dict[str, Any]
    hardware_key: str
    command: str
    created_at: str

    def question(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"slo", "variants", "protocol", "cpus", "hardware_key"})


@dataclass(frozen=True)
class Outcome:
    """Medians over all trials of one configuration that were measured."""

    configuration: Configuration
    accuracy: float
    """The figure by which its answers are judged: `metric`."""
    trials: int
    slo_rate_rps: float | None
    slo_rates_rps: tuple[float, ...]
    """Each trial's, to see how much they scatter."""
    max_rate_rps: float
    latency_p50_s: float
    latency_p99_s: float
    """Infinite where over 1% failed in most trials."""
    attainment: float
    core_s_per_million: float | None
    memory_bytes: int | None
    """The most that any trial saw; None if none could tell."""
    reference_rate_rps: float = 0.0
    """The load of latencies, attainment and cost."""
    metric: str = "accuracy"
    higher_is_better: bool = True

    @property
    def quality(self) -> float:
        """`accuracy`, or the negative of an error: larger is better whatever is measured."""
        return self.accuracy if self.higher_is_better else -self.accuracy


@dataclass(frozen=True)
class Study:
    """The question and all trials so far; in a notebook it shows itself as a table."""

    header: StudyHeader
    trials: tuple[Trial, ...]

    @property
    def next_number(self) -> int:
        """For the next trial: above all that are there, also where one was deleted."""
        return 1 + max((trial.number for trial in self.trials), default=0)

    def outcomes(self) -> list[Outcome]:
        """One for each configuration that was measured, in the order of their first trials."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if trial.figures is not None:
                groups.setdefault(trial.configuration.key, []).append(trial)
        return [self._outcome(group) for group in groups.values()]

    def _outcome(self, group: Sequence[Trial]) -> Outcome:
        configuration = group[0].configuration
        figures = [trial.figures for trial in group if trial.figures is not None]
        rates = tuple(f.slo_rate_rps for f in figures if f.slo_rate_rps is not None)
        costs = [f.core_s_per_million for f in figures if f.core_s_per_million is not None]
        memory = [f.memory_bytes for f in figures if f.memory_bytes is not None]

        def median(values: list[float | None]) -> float:
            return statistics.median(math.inf if value is None else value for value in values)

        return Outcome(
            configuration=configuration,
            accuracy=self.header.accuracies[configuration.variant_id][configuration.runtime.name],
            trials=len(figures),
            slo_rate_rps=statistics.median(rates) if rates else None,
            slo_rates_rps=rates,
            max_rate_rps=statistics.median(f.max_rate_rps for f in figures),
            latency_p50_s=median([f.latency_p50_s for f in figures]),
            latency_p99_s=median([f.latency_p99_s for f in figures]),
            attainment=statistics.median(f.attainment for f in figures),
            core_s_per_million=statistics.median(costs) if costs else None,
            memory_bytes=max(memory) if memory else None,
            reference_rate_rps=statistics.median(f.reference_rate_rps for f in figures),
            metric=self.header.metric,
            higher_is_better=self.header.higher_is_better,
        )

    def _repr_html_(self) -> str:
        headers = ("configuration", "SLO rate", "max rate", "p50", "p99", self.header.metric, "trials")
        rows = [
            (
                str(o.configuration),
                "" if o.slo_rate_rps is None else f"{o.slo_rate_rps:,.0f}/s",
                f"{o.max_rate_rps:,.0f}/s",
                *("failed" if math.isinf(s) else f"{s * 1e3:.2f} ms" for s in (o.latency_p50_s, o.latency_p99_s)),
                decimals(o.accuracy, higher_is_better=o.higher_is_better),
                str(o.trials),
            )
            for o in sorted(self.outcomes(), key=_by_rate)
        ]
        head = "".join(f"<th>{html.escape(h)}</th>" for h in headers)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        return f"<table><caption>{html.escape(self.header.name)}</caption><tr>{head}</tr>{body}</table>"


_Kept = TypeVar("_Kept", StudyHeader, Trial)


class StudyStore:
    """The folder of one study. Creating the object touches nothing; one writer at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, header: StudyHeader) -> Study:
        """Begin the study, or go on with the one of the same question that is there.

        Raises ConfigError, naming what differs, if the folder holds a study of another question, and as `read` does.
        """
        path = self.folder / "study.json"
        if not path.exists():
            if self._trial_paths():
                raise ConfigError(
                    f"{self.folder} holds trials, but study.json, which says what they were for, is gone; put it back, "
                    "or delete the folder to start again"
                )
            self._write(path, header.model_dump(mode="json"))
            return self.read()
        there = self.read()
        was, now = there.header.question(), header.question()
        differing = [key for key in now if now[key] != was[key]]
        if differing:
            told = "; ".join(f"{key} was {_short(was[key])}, now {_short(now[key])}" for key in differing)
            raise ConfigError(
                f"{self.folder} holds a study of another question ({told}); give the study another name (--study), or "
                "go on with what it was started with"
            )
        return there

    def read(self) -> Study:
        """All that is there. Raises ConfigError if there is no study, or a file of it is damaged."""
        path = self.folder / "study.json"
        if not path.exists() and not self._trial_paths():
            raise ConfigError(f"no study in {self.folder}; start one with `sluice tune`")
        header = _read(StudyHeader, path, "delete the folder to start again")
        trials = [_read(Trial, path, "delete it, the rest is used") for path in self._trial_paths()]
        return Study(header, tuple(sorted(trials, key=lambda trial: trial.number)))

    def add(self, trial: Trial) -> None:
        """Keep a trial. Raises ArtifactError if there is one of that number, or the disk refuses."""
        path = self.folder / "trials" / f"{trial.number:04d}.json"
        if path.exists():
            raise ArtifactError(f"{path} is there already, and what was measured is not overwritten; use next_number")
        self._write(path, trial.model_dump(mode="json"))

    def _trial_paths(self) -> list[Path]:
        return sorted((self.folder / "trials").glob("[0-9]*.json"))

    def _write(self, path: Path, value: Any) -> None:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("w") as file:
                json.dump(value, file, indent=1, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            raise ArtifactError(f"cannot write {path} ({error}); see that it may be written and has room") from error


def _read(kind: type[_Kept], path: Path, way_out: str) -> _Kept:
    try:
        return kind.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise ConfigError(f"{path} is damaged ({what}); {way_out}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {way_out}") from error


def _by_rate(outcome: Outcome) -> tuple[float, float]:
    """Highest SLO rate first; those of which it is not known after those of which it is."""
    return (math.inf if outcome.slo_rate_rps is None else -outcome.slo_rate_rps, -outcome.max_rate_rps)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:197]}..."
