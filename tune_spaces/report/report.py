"""Everything that a tune or a demo learnt -> Report -> report.html, report.md and report.json.

One value for both: a tune measured no baseline of its own (`comparison` is None), a demo did. A Report is read back
from its JSON, so that a page can be made again without measuring anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.plans import Plan
from cluster.profiles import Curve, Profile, curves
from cluster.slo import Slo
from cluster.studies import Outcome, Study, StudyHeader, Trial
from cluster.variants import Variant
from tune_spaces.measure import Comparison, Figures, Protocol

REPORT_VERSION = 2


@dataclass(frozen=True)
class Report:
    """What was asked, what was found, on what, and how to repeat it."""

    run_name: str
    slo: Slo
    study: Study
    plan: Plan
    """What was chosen."""
    variants: Sequence[Variant]
    curves: Sequence[Curve]
    left_out: Sequence[tuple[str, str]]
    """(what was not searched, why)"""
    comparison: Comparison | None
    """Against the stock baseline, longer than a trial; None where only the study measured."""
    stage_seconds: dict[str, float]
    total_seconds: float
    commands: Sequence[str]
    """To repeat it, word for word."""
    files: Mapping[str, str]
    """What was written beside it: name -> what it is for."""
    notes: Sequence[str] = ()

    @property
    def chosen(self) -> Outcome | None:
        """What the study measured of the plan; None if it measured another."""
        return next((o for o in self.study.outcomes() if o.configuration.key == self.plan.key), None)

    @property
    def baseline(self) -> Outcome | None:
        """The configuration that the study took as what one had before, if there is one."""
        keys = [trial.configuration.key for trial in self.study.trials if trial.origin == "baseline"]
        return next((o for o in self.study.outcomes() if o.configuration.key in keys), None)

    @property
    def trained(self) -> Variant:
        """The top of the lineage: what the baseline serves."""
        return next((v for v in self.variants if v.parent_id is None), self.variants[0])

    @property
    def served(self) -> Variant:
        """The variant of the plan."""
        return next(v for v in self.variants if v.id == self.plan.variant_id)

    @property
    def reference_rps(self) -> float | None:
        """The load of the study's latencies; None if nothing was measured."""
        return next((t.figures.reference_rate_rps for t in self.study.trials if t.figures is not None), None)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite figure is null."""
        described = {
            "report_version": REPORT_VERSION,
            "run_name": self.run_name,
            "slo": self.slo.model_dump(mode="json"),
            "plan": self.plan.model_dump(mode="json"),
            "study": {
                "header": self.study.header.model_dump(mode="json"),
                "trials": [trial.model_dump(mode="json") for trial in self.study.trials],
            },
            "variants": [variant.model_dump(mode="json") for variant in self.variants],
            "profiles": [profile.model_dump(mode="json") for curve in self.curves for profile in curve.points],
            "left_out": [list(pair) for pair in self.left_out],
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
            "stage_seconds": self.stage_seconds,
            "total_seconds": self.total_seconds,
            "commands": list(self.commands),
            "files": dict(self.files),
            "notes": list(self.notes),
        }
        cleaned: dict[str, Any] = _finite(described)
        return cleaned


def read(path: Path) -> Report:
    """The report of a report.json. Raises ConfigError if it is none of this version."""
    try:
        data = json.loads(path.read_text())
        if data.get("report_version") != REPORT_VERSION:
            raise ValueError(f"report_version {data.get('report_version')}, not {REPORT_VERSION}")
        return _report(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{path} is no report.json of this version ({error}); measure again with `sluice tune`"
        raise ConfigError(told) from error


def write(report: Report, folder: Path) -> Path:
    """Write report.html, report.md and report.json; returns the page's path."""
    from tune_spaces.report.markdown import markdown  # these draw: plotly is only loaded for a whole report
    from tune_spaces.report.page import page

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=2, allow_nan=False), encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(page(report), encoding="utf-8")
    return path


def _report(data: dict[str, Any]) -> Report:
    study = data["study"]
    return Report(
        run_name=data["run_name"],
        slo=Slo.model_validate(data["slo"]),
        study=Study(
            StudyHeader.model_validate(study["header"]), tuple(Trial.model_validate(trial) for trial in study["trials"])
        ),
        plan=Plan.model_validate(data["plan"]),
        variants=[Variant.model_validate(_without(each, "id")) for each in data["variants"]],
        curves=curves(Profile.model_validate(each) for each in data["profiles"]),
        left_out=[(what, why) for what, why in data["left_out"]],
        comparison=None if data["comparison"] is None else _comparison(data["comparison"]),
        stage_seconds=data["stage_seconds"],
        total_seconds=data["total_seconds"],
        commands=data["commands"],
        files=data["files"],
        notes=data["notes"],
    )


def _comparison(data: dict[str, Any]) -> Comparison:
    protocol: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data["protocol"].items()
    }
    made: dict[str, Any] = {side: _figures(data[side]) for side in ("before", "after")}
    return Comparison(**data | made | {"protocol": Protocol(**protocol)})


def _figures(data: dict[str, Any]) -> Figures:
    stored = {field.name: data[field.name] for field in fields(Figures)}  # the rest are derived from these
    per_seed = {
        bound: {int(seed): rate for seed, rate in rates.items()} for bound, rates in data["slo_rate_per_seed"].items()
    }
    steps = [(rate, p99_s) for rate, p99_s in data["p99_by_rate"]]
    return Figures(**stored | {"slo_rate_per_seed": per_seed, "p99_by_rate": steps})


def _without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != key}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
