"""What compression gives, family by family: variant x size x figure x speed on each runtime, side by side in one run.

    python -m benchmarks.compression cnn_fashion_mnist lstm_etth1 --output docs/results/2026-01-31-compression

Each name is a finished run. Its variants are those of benchmarks/specs, chosen by the family; each is judged on the
full test part in every runtime, then all are profiled in turn on one core, a process each, in several rounds: a machine
that drifts moves all of them alike. Interrupted, the same command goes on with what it has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import files
from cluster.artifacts import ArtifactStore, default_store
from cluster.hardware import fingerprint
from cluster.profiles import curves
from cluster.runtimes import RuntimeConfig
from cluster.slo import AccuracyFloor
from cluster.variants import Variant
from train_jobs import runs

_SAY = Console(stderr=True, soft_wrap=True).print
_SPECS = Path(__file__).parent / "specs"
_BATCHES = (1, 4, 16, 64, 128)
_FLOOR = AccuracyFloor()
_TORCH_TOO = (
    RuntimeConfig(name="torch", channels_last=True), RuntimeConfig(name="torch", compile=True),
    RuntimeConfig(name="torch", compile=True, channels_last=True),
)  # fmt: skip
Row = dict[str, Any]
Rates = dict[tuple[str, RuntimeConfig], list[Row]]
"""By variant's id and runtime, round by round."""


def spec_of(family: str) -> Path:
    """The file of a family's variants; families of one kind share one."""
    kind = {"mlp": "cnn", "rnn": "lstm", "vae": "autoencoder"}.get(family, family)
    path = _SPECS / f"{kind}.yaml"
    return path if path.exists() else _SPECS / "cnn.yaml"


def made(name: str, runs_dir: Path, store: ArtifactStore) -> tuple[list[Variant], list[str]]:
    """The run's variants, and what was said of those that could not be made."""
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import load_spec
    from train_jobs.compression.trained import of_finished

    run = runs.load(name, runs_dir)
    dataset = run.config.task.load(run.config.dataset, notify=_SAY)
    source = of_finished(run, dataset, runs_dir=runs_dir)
    left_out: list[str] = []

    def told(line: str) -> None:
        _SAY(line)
        if "left out" in line or "does not run" in line:
            left_out.append(line)

    return build_variants(store, source, dataset, load_spec(spec_of(source.family)), notify=told), left_out


def made_once(name: str, runs_dir: Path, store: ArtifactStore) -> tuple[list[Variant], list[str]]:
    """`made`, or what it made before of the same spec, kept beside the run."""
    path = runs_dir / name / "benchmark-variants.json"
    spec = spec_of(runs.load(name, runs_dir).config.model.kind).read_text()
    if path.exists():
        there = json.loads(path.read_text())
        if there["spec"] == spec:
            return [store.get(each) for each in there["ids"]], there["left_out"]
    variants, left_out = made(name, runs_dir, store)
    files.write(path, json.dumps({"spec": spec, "ids": [v.id for v in variants], "left_out": left_out}, indent=1))
    return variants, left_out


def samples(name: str, runs_dir: Path, variant: Variant) -> NDArray[np.generic]:
    """What everything is timed on: an early exit gains by the data."""
    from tune_spaces.tune import samples_of

    config = runs.load(name, runs_dir).config
    return samples_of(config.task.load(config.dataset, notify=_SAY), variant)


def rates(
    store: ArtifactStore, variants: Sequence[Variant], core: int, rounds: int, given: NDArray[np.generic]
) -> Rates:
    """By variant and runtime: latency of one sample, and the best throughput, round by round."""
    from tune_spaces.profiler import profile, runtime_configs

    jobs = [
        (v, c) for v in variants for c in [*runtime_configs(v), *(_TORCH_TOO if v.format == "torch_export" else ())]
        if v.accuracy_in(c.name) is not None
    ]  # fmt: skip
    found: Rates = {}
    for number in range(rounds):
        _SAY(f"round {number + 1} of {rounds}: {len(jobs)} pairs of variant and runtime")
        profiles = profile(
            store, jobs, batch_sizes=_BATCHES, cpus=[core], fresh=True, samples=given,
            on_progress=lambda line: _SAY(line) if line.startswith("left out") else None,
        )  # fmt: skip
        for curve in curves(profiles):
            found.setdefault((curve.variant_id, curve.runtime), []).append({
                "latency_s": curve.points[0].latency_p50_s, "throughput_rps": curve.best.throughput_rps,
                "best_batch": curve.best.batch_size, "knee_batch": curve.knee.batch_size,
                "memory_bytes": curve.best.memory_bytes,
            })  # fmt: skip
    return found


def rows_of(variants: Sequence[Variant], measured: Rates) -> list[Row]:
    """One for each variant on each runtime."""
    rows = []
    for variant in variants:
        for (variant_id, runtime), rounds in measured.items():
            accuracy = variant.accuracy_in(runtime.name)
            if variant_id != variant.id or accuracy is None:
                continue
            told = {key: [r[key] for r in rounds] for key in rounds[0]}
            rows.append({
                "variant": variant.name.rpartition("/")[2], "runtime": str(runtime),
                "size_bytes": variant.size_bytes, "passes": [p.name for p in variant.passes],
                "metric": accuracy.metric, "value": accuracy.value,
                "interval": accuracy.interval, "higher_is_better": accuracy.higher_is_better,
                "to_root": None if accuracy.to_root is None else accuracy.to_root.model_dump(mode="json"),
                "verdict": _FLOOR.verdict(accuracy), "latency_s": statistics.median(told["latency_s"]),
                "throughput_rps": statistics.median(told["throughput_rps"]), "rounds": told,
                "best_batch": rounds[-1]["best_batch"], "knee_batch": rounds[-1]["knee_batch"],
                "memory_bytes": max(told["memory_bytes"]),
            })  # fmt: skip
    return rows


def table(name: str, rows: Sequence[Row], variants: Sequence[Variant]) -> list[str]:
    """Markdown: ratios are to the trained module in eager-loaded torch, the first row."""
    eager = next((r for r in rows if r["variant"] == "fp32-torch"), rows[0])
    graph = next((v.size_bytes for v in variants if v.name.endswith("/fp32")), eager["size_bytes"])
    best = front(rows)
    lines = [f"## {name}", "",
             f"| variant | runtime | KiB (to fp32) | {rows[0]['metric']} [95%] | to the trained | floor | "
             "ms at batch 1 | samples/s at best batch (rounds) | to torch |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for number, row in enumerate(rows):
        low, high = row["interval"]
        apart = row["to_root"]
        change = ""
        if apart is not None:
            change = f"{apart['value']:+.4f} [{apart['interval'][0]:+.4f}, {apart['interval'][1]:+.4f}]"
        spread = ", ".join(f"{value:,.0f}" for value in row["rounds"]["throughput_rps"])
        mark = "**" if number in best else ""
        lines.append(
            f"| {mark}{row['variant']}{mark} | {row['runtime']} | {row['size_bytes'] / 1024:.0f} "
            f"({graph / row['size_bytes']:.1f}x) | {row['value']:.4f} [{low:.4f}, {high:.4f}] | {change} | "
            f"{row['verdict']} | {row['latency_s'] * 1e3:.3f} | {row['throughput_rps']:,.0f} at "
            f"{row['best_batch']} ({spread}) | {row['throughput_rps'] / eager['throughput_rps']:.1f}x |"
        )
    return [*lines, ""]


def front(rows: Sequence[Row]) -> set[int]:
    """Numbers of the rows that no other beats in figure, size and throughput at once."""

    def worth(row: Row) -> tuple[float, float, float]:
        sign = 1.0 if row["higher_is_better"] else -1.0
        return sign * row["value"], -row["size_bytes"], row["throughput_rps"]

    worths = [worth(row) for row in rows]
    return {
        i for i, mine in enumerate(worths)
        if not any(all(a >= b for a, b in zip(w, mine, strict=True)) and w != mine for w in worths)
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="finished runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/compression"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/training"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--core", type=int, default=0, help="on which everything is timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-make", action="store_true", help="make and judge the variants, and time nothing yet")
    given = parser.parse_args(argv)
    store = ArtifactStore(given.store) if given.store else default_store()
    done: dict[str, Any] = {}
    path = given.output / "compression.json"
    if path.exists():
        done = json.loads(path.read_text())
    for name in given.names:
        if name in done:
            continue
        variants, left_out = made_once(name, given.runs_dir, store)
        if given.only_make:
            continue
        rows = rows_of(variants, rates(
            store, variants, given.core, given.rounds, samples(name, given.runs_dir, variants[0])
        ))
        done[name] = {"rows": rows, "left_out": left_out, "table": table(name, rows, variants)}
        files.write(path, json.dumps(done, indent=1))
    if given.only_make:
        return
    command = f"python -m benchmarks.compression {' '.join(given.names)} --output {given.output}"
    lines = [
        "# Compression, family by family", "", f"`{command}`, {time.strftime('%F')}, on {fingerprint()}.", "",
        f"One core, one thread, {given.rounds} rounds in turn, medians. Bold: no other row of the table beats it in "
        "figure, size and throughput at once. The floor: at most half a point (shares) or 5% (errors) worse than the "
        "trained model, one-sided 95%; differences to it: + is better. Sizes are those of the stored files: "
        "`fp32-torch` holds its weights twice.", "",
    ]  # fmt: skip
    for found in done.values():
        lines += found["table"]
        lines += [*(f"- {line}" for line in found["left_out"]), ""] if found["left_out"] else []
    files.write(given.output / "README.md", "\n".join(lines))
    files.write(given.output / "pareto.svg", svg({name: found["rows"] for name, found in done.items()}))
    _SAY(f"wrote {given.output}")


def svg(families: dict[str, Sequence[Row]]) -> str:
    """One plot for each family, beside each other: throughput (log) against the figure, a disc for each row, its size
    the graph's; filled where the floor holds, ringed where no other row beats it."""
    import math

    width, height, left, top = 460, 340, 70, 40
    inside_w, inside_h = width - left - 20, height - top - 60
    colours = {"torch": "#8a8f98", "onnxruntime": "#2f6fde", "openvino": "#d9822b"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height * math.ceil(len(families) / 2)}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for number, (name, rows) in enumerate(families.items()):
        x0, y0 = (number % 2) * width + left, (number // 2) * height + top
        rate = [math.log10(r["throughput_rps"]) for r in rows]
        value = [r["value"] for r in rows]
        r_low, r_high, v_low, v_high = min(rate), max(rate), min(value), max(value)
        r_span, v_span = max(r_high - r_low, 1e-9), max(v_high - v_low, 1e-9)
        largest = max(r["size_bytes"] for r in rows)
        parts.append(f'<text x="{x0}" y="{y0 - 16}" font-size="13" font-weight="bold">{name}</text>')
        parts.append(f'<rect x="{x0}" y="{y0}" width="{inside_w}" height="{inside_h}" fill="none" stroke="#ccc"/>')
        for share in (0.0, 0.5, 1.0):
            x, y = x0 + share * inside_w, y0 + inside_h - share * inside_h
            parts.append(f'<text x="{x:.0f}" y="{y0 + inside_h + 16}" text-anchor="middle">'
                         f'{10 ** (r_low + share * r_span):,.0f}</text>')  # fmt: skip
            parts.append(f'<text x="{x0 - 6}" y="{y + 4:.0f}" text-anchor="end">{v_low + share * v_span:.4g}</text>')
        middle, better = x0 + inside_w / 2, "more" if rows[0]["higher_is_better"] else "less"
        parts.append(f'<text x="{middle}" y="{y0 + inside_h + 34}" text-anchor="middle">samples/s on one core (log)'
                     f'</text><text x="{x0}" y="{y0 - 3}">{rows[0]["metric"]}, {better} is better</text>')
        best, labelled = front(rows), list[tuple[float, float]]()
        for i, row in enumerate(rows):
            x = x0 + inside_w * (0.04 + 0.92 * (rate[i] - r_low) / r_span)
            y = y0 + inside_h * (0.96 - 0.92 * (value[i] - v_low) / v_span)
            radius = 4 + 9 * math.sqrt(row["size_bytes"] / largest)
            fill = 0.55 if row["verdict"] == "holds" else 0.0
            ring = 2.2 if i in best else 0.8
            colour = colours.get(row["runtime"].split(" ")[0], "#555")
            disc = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="{fill}"'
            parts.append(f'<circle {disc} '
                         f'stroke="{colour}" stroke-width="{ring}"><title>{row["variant"]} on {row["runtime"]}</title>'
                         "</circle>")  # fmt: skip
            if i in best and all(abs(x - there[0]) > 70 or abs(y - there[1]) > 9 for there in labelled):
                labelled.append((x, y))
                side = -1 if x > x0 + 0.7 * inside_w else 1
                parts.append(f'<text x="{x + side * (radius + 2):.1f}" y="{y + 3:.1f}" font-size="9" '
                             f'text-anchor="{"end" if side < 0 else "start"}">{row["variant"]}</text>')  # fmt: skip
        for k, (runtime, colour) in enumerate(colours.items()):
            parts.append(f'<circle cx="{x0 + 6 + 100 * k}" cy="{y0 + inside_h + 50}" r="5" fill="{colour}"/>'
                         f'<text x="{x0 + 16 + 100 * k}" y="{y0 + inside_h + 54}">{runtime}</text>')  # fmt: skip
    return "".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
