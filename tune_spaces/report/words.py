"""Figures -> the words that people read. One place, so that every table, plot and sentence says a figure alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from cluster.stats import Verdict
from cluster.studies import Outcome
from cluster.variants import Accuracy, Difference, Variant, decimals, figure

VERDICTS: Mapping[Verdict, str] = {"holds": "holds", "fails": "fails", "unclear": "can't tell"}


def accuracy_text(accuracy: Accuracy | None) -> str:
    """0.9105 [0.9048, 0.9160]; mse 0.3121 [0.298, 0.3263] of anything but an accuracy."""
    if accuracy is None:
        return "not measured"
    named = figure(accuracy.metric, accuracy.value, higher_is_better=accuracy.higher_is_better)
    low, high = (decimals(end, higher_is_better=accuracy.higher_is_better) for end in accuracy.interval)
    return f"{named} [{low}, {high}]"


def difference_text(difference: Difference | None) -> str:
    """+0.0002 [-0.0012, +0.0016]; -1.20% [-2.31%, -0.11%] of an error; "" for what is compared with nothing."""
    if difference is None:
        return ""
    form = "{:+.2%}" if difference.relative else "{:+.4f}"
    value, low, high = map(form.format, (difference.value, *difference.interval))
    return f"{value} [{low}, {high}]"


def outcome_text(outcome: Outcome) -> str:
    """0.9105; mse 0.3121"""
    return figure(outcome.metric, outcome.accuracy, higher_is_better=outcome.higher_is_better)


def ratio(after: float | None, before: float | None) -> str:
    """ "-" where one of them is not known."""
    return f"{after / before:,.2f}x" if after is not None and before else "-"


def ms(seconds: float | None) -> str:
    """None and infinity: more failed than a quantile may hide."""
    return "failed" if seconds is None or math.isinf(seconds) else f"{seconds * 1e3:,.2f} ms"


def rate(per_s: float | None, *, at_least: bool = False) -> str:
    """None: the client could not tell, or nobody looked."""
    return "can't tell" if per_s is None else f"{'at least ' if at_least else ''}{count(per_s)} req/s"


def count(value: float) -> str:
    """1,201 but 3.4: three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def cost(core_s: float | None) -> str:
    """CPU seconds per million answers."""
    return "not known" if core_s is None else f"{core_s:,.0f} core-s"


def mib(size: int | None) -> str:
    return "not known" if size is None else f"{size / 2**20:,.0f} MiB"


def kib(variant: Variant) -> str:
    """Of the graph alone: the torch variant keeps its weights a second time, for the baseline's model class."""
    return f"{variant.model_file.size_bytes / 1024:,.0f} KiB"


def duration(seconds: float) -> str:
    """41.3 s, 12 min 5 s"""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def passes_text(variant: Variant) -> str:
    """prune_channels, finetune, export_onnx"""
    return ", ".join(step.name for step in variant.passes) or "none"


def cores_text(cpus: Sequence[int] | None) -> str:
    if not cpus:
        return "any core"
    return f"{'core' if len(cpus) == 1 else 'cores'} {numbers_text(cpus)}"


def numbers_text(numbers: Iterable[int]) -> str:
    """1, 3 to 8"""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def sentence(words: str) -> str:
    """With a capital and a full stop."""
    return f"{words[:1].upper()}{words[1:].removesuffix('.')}."


def short_names(names: Mapping[str, str]) -> dict[str, str]:
    """By variant id: without the folder, where all are of the same one."""
    folders = {name.rpartition("/")[0] for name in names.values()}
    if len(folders) > 1:
        return dict(names)
    return {key: name.rpartition("/")[2] for key, name in names.items()}
