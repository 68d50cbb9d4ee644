"""A study is resumed by reading what is there: the same question goes on, another is refused, a kill costs one."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import ArtifactError, ConfigError
from cluster.plans import Configuration
from cluster.runtimes.base import RuntimeConfig
from cluster.slo import Slo
from cluster.studies import LiveFigures, Study, StudyHeader, StudyStore, Trial
from tests.unit.cluster.test_plans import NASTY, Cells

FAST, SMALL = "f" * 16, "5" * 16


def header(**fields: Any) -> StudyHeader:
    usual: dict[str, Any] = {
        "name": "demo", "slo": Slo(), "variants": {FAST: "cnn/fp32", SMALL: "cnn/int8"},
        "accuracies": {FAST: {"onnxruntime": 0.95, "openvino": 0.94}, SMALL: {"onnxruntime": 0.93}},
        "protocol": {"name": "quick", "step_s": 2.0, "loads": [0.5, 0.9]}, "cpus": {"server": [0], "client": [1]},
        "hardware": {"cpu": "this one"}, "hardware_key": "a machine", "command": "sluice tune demo",
        "created_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return StudyHeader.model_validate(usual | fields)


def configuration(variant_id: str = FAST, **fields: Any) -> Configuration:
    usual = {"variant_id": variant_id, "variant_name": header().variants[variant_id], "runtime": RuntimeConfig()}
    return Configuration.model_validate(usual | fields)


def live(**fields: Any) -> LiveFigures:
    usual: dict[str, Any] = {
        "max_rate_rps": 1000.0, "slo_rate_rps": 800.0, "reference_rate_rps": 400.0, "latency_p50_s": 0.004,
        "latency_p99_s": 0.012, "attainment": 1.0, "error_rate": 0.0, "core_s_per_million": 900.0,
        "memory_bytes": 200 << 20, "client_cpu_share": 0.2, "p99_by_rate": ((700.0, 0.02), (900.0, None)),
    }  # fmt: skip
    return LiveFigures.model_validate(usual | fields)


def trial(number: int, figures: LiveFigures | None = None, of: Configuration | None = None, **fields: Any) -> Trial:
    usual: dict[str, Any] = {
        "number": number, "configuration": of or configuration(), "origin": "optuna", "seed": number,
        "figures": figures, "error": None if figures else "it did not answer", "started_at": "2026-01-01T00:00:00",
        "took_s": 20.0,
    }  # fmt: skip
    return Trial.model_validate(usual | fields)


def study(*trials: Trial) -> Study:
    return Study(header(), trials)


# Open, read, add


def test_what_was_added_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    store = StudyStore(tmp_path / "study")
    assert not (tmp_path / "study").exists(), "creating the object touches nothing"
    assert store.open(header()) == Study(header(), ())
    numbers = [2, 9_999, 1, 10_000, 123_456]
    for number in numbers:
        store.add(trial(number, live()))
    found = StudyStore(tmp_path / "study").read()
    assert [t.number for t in found.trials] == sorted(numbers)
    assert found == Study(header(), tuple(trial(number, live()) for number in sorted(numbers)))
    assert found.next_number == 123_457
    assert study().next_number == 1


def test_the_same_question_goes_on_with_the_trials_that_are_there(tmp_path: Path) -> None:
    """Asked by another command, at another time, under another name."""
    store = StudyStore(tmp_path)
    store.open(header())
    store.add(trial(1, live()))
    same = {"name": "quick", "loads": (0.5, 0.9), "step_s": 2}
    again = store.open(
        header(name="other", command="sluice tune --resume", created_at="2030", hardware={"cpu": "x"}, protocol=same)
    )
    assert again == Study(header(), (trial(1, live()),)), "and its header is the first one's"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slo": Slo(latency_p99_ms=25)}, r'slo was .*"latency_p99_ms": 50.0.*, now .*"latency_p99_ms": 25.0'),
        ({"variants": {FAST: "cnn/fp32"}}, "variants was .*, now "),
        ({"protocol": {"name": "full"}}, r'protocol was .*"quick".*, now {"name": "full"}'),
        ({"cpus": {}}, r"cpus was .*, now {}"),
        ({"hardware_key": "another machine"}, 'hardware_key was "a machine", now "another machine"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_question_is_refused_with_what_differs(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    store = StudyStore(tmp_path)
    store.open(header())
    before = (tmp_path / "study.json").read_bytes()
    told = f"holds a study of another question .{said}.*another name .--study"
    with pytest.raises(ConfigError, match=told) as caught:
        store.open(header(**change))
    others = {"slo", "variants", "protocol", "cpus", "hardware_key"} - set(change)
    assert not any(f"{other} was" in str(caught.value) for other in others)
    assert (tmp_path / "study.json").read_bytes() == before


def test_no_study_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no study in {tmp_path}; start one with `sluice tune`"):
        StudyStore(tmp_path).read()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"number": 1}'], ids=repr)
def test_a_damaged_trial_is_named_and_the_rest_is_used_without_it(tmp_path: Path, content: bytes) -> None:
    store = StudyStore(tmp_path)
    store.open(header())
    for number in (1, 2, 3):
        store.add(trial(number, live()))
    path = tmp_path / "trials" / "0002.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"trials/0002\.json is damaged \(.*delete it, the rest is used"):
        store.open(header())
    path.unlink()
    found = store.open(header())
    assert [t.number for t in found.trials] == [1, 3]
    assert found.next_number == 4, "a number that is taken is not given again"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"schema_version": 2}'], ids=repr)
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes) -> None:
    store = StudyStore(tmp_path)
    store.open(header())
    (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.json is damaged .*delete the folder to start again"):
        store.open(header())


def test_trials_whose_question_is_gone_are_not_taken_for_answers_to_another(tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    store.open(header())
    store.add(trial(1, live()))
    (tmp_path / "study.json").unlink()
    with pytest.raises(ConfigError, match=r"holds trials, but study\.json.* is gone"):
        store.open(header(slo=Slo(latency_p99_ms=5)))
    with pytest.raises(ConfigError, match=r"study\.json is damaged"):
        store.read()


def test_what_was_measured_is_not_overwritten(tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    store.open(header())
    store.add(trial(1, live()))
    with pytest.raises(ArtifactError, match=r"0001\.json is there already.*next_number"):
        store.add(trial(1))
    assert store.read().trials == (trial(1, live()),)


def test_a_disk_that_refuses_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"cannot write .*see that it may be written and has room"):
        StudyStore(tmp_path / "file").open(header())


def test_a_trial_has_figures_or_an_error() -> None:
    with pytest.raises(ValidationError, match="one of the two"):
        trial(1, live(), error="it did not answer")
    with pytest.raises(ValidationError, match="one of the two"):
        trial(1, error=None)


@pytest.mark.parametrize("name", ["max_rate_rps", "latency_p99_s", "attainment", "core_s_per_million"])
def test_figures_are_numbers_that_json_can_hold(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        live(**{name: math.inf})


_WRITER = """
import sys
from pathlib import Path
from cluster.studies import StudyStore
from tests.unit.cluster.test_studies import header, live, trial
store = StudyStore(Path(sys.argv[1]))
study = store.open(header())
figures = live(latency_histogram="x" * 200_000)
print("ready", flush=True)
for number in range(study.next_number, 10_000):
    store.add(trial(number, figures))
    print(number, flush=True)
"""


def test_a_kill_9_while_it_adds_costs_the_trial_that_was_being_added(tmp_path: Path) -> None:
    rng = random.Random(7)
    told = 0
    for _ in range(3):
        command = [sys.executable, "-c", _WRITER, str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        first = writer.stdout.readline()
        assert int(first) > told
        time.sleep(rng.uniform(0, 0.03))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split("\n")[:-1]
        writer.wait()
        told = int(rest[-1] if rest else first)
        found = StudyStore(tmp_path).open(header())
        assert [t.number for t in found.trials] == list(range(1, len(found.trials) + 1))
        assert told <= len(found.trials) <= told + 1, "all that it said it had kept, and at most the one in flight"
        assert all(t.figures is not None and len(t.figures.latency_histogram) == 200_000 for t in found.trials)


# Outcomes


def test_outcomes_are_medians_over_the_trials_of_one_configuration() -> None:
    two = configuration(SMALL, max_batch_size=8)
    found = study(
        trial(1, live(slo_rate_rps=800.0, latency_p99_s=0.010, memory_bytes=10, max_rate_rps=1000.0)),
        trial(2, live(slo_rate_rps=100.0), two),
        trial(3),  # could not be measured
        trial(4, live(slo_rate_rps=900.0, latency_p99_s=None, memory_bytes=30, max_rate_rps=1300.0), origin="confirm"),
        trial(5, live(slo_rate_rps=830.0, latency_p99_s=0.020, memory_bytes=None, max_rate_rps=1100.0,
                      core_s_per_million=None, attainment=0.9)),
    ).outcomes()  # fmt: skip
    assert [o.configuration for o in found] == [configuration(), two]
    first = found[0]
    assert (first.trials, first.accuracy) == (3, 0.95)
    assert (first.slo_rate_rps, first.slo_rates_rps) == (830.0, (800.0, 900.0, 830.0))
    assert first.max_rate_rps == 1100.0
    assert (first.latency_p50_s, first.latency_p99_s) == (0.004, 0.020)
    assert (first.attainment, first.core_s_per_million) == (1.0, 900.0)
    assert (first.memory_bytes, first.reference_rate_rps) == (30, 400.0)
    assert (found[1].trials, found[1].accuracy) == (1, 0.93)


def test_what_no_trial_could_tell_is_not_told() -> None:
    untold = live(slo_rate_rps=None, latency_p50_s=None, latency_p99_s=None, core_s_per_million=None, memory_bytes=None)
    (found,) = study(trial(1, untold), trial(2, untold)).outcomes()
    assert (found.slo_rate_rps, found.slo_rates_rps) == (None, ())
    assert found.latency_p50_s == found.latency_p99_s == math.inf
    assert found.core_s_per_million is found.memory_bytes is None
    assert study(trial(1)).outcomes() == []


def test_accuracy_is_that_of_the_runtime() -> None:
    (found,) = study(trial(1, live(), configuration(runtime=RuntimeConfig(name="openvino")))).outcomes()
    assert found.accuracy == 0.94


@given(
    seen=st.lists(st.tuples(st.floats(1, 1e5), st.none() | st.floats(1e-4, 1)), min_size=1, max_size=7),
    seed=st.integers(0, 99),
)
def test_the_order_of_the_trials_changes_no_outcome(seen: list[tuple[float, float | None]], seed: int) -> None:
    made = [trial(k, live(max_rate_rps=rate, latency_p99_s=p99)) for k, (rate, p99) in enumerate(seen, start=1)]
    (found,) = study(*made).outcomes()
    assert found.max_rate_rps == statistics.median(rate for rate, _ in seen)
    random.Random(seed).shuffle(made)
    assert study(*made).outcomes() == [found]


# In a notebook


def test_it_shows_itself_as_a_table_the_best_first() -> None:
    made = study(
        trial(1, live(slo_rate_rps=0.0, max_rate_rps=5000.0), configuration(max_batch_size=1)),
        trial(2, live(slo_rate_rps=None, max_rate_rps=9000.0), configuration(max_batch_size=2)),
        trial(3, live(slo_rate_rps=1201.0, latency_p99_s=None)),
        trial(4),
    )
    shown = Cells(made._repr_html_())
    rows = [shown.cells[8 + 7 * k : 15 + 7 * k] for k in range(3)]
    assert shown.cells[0] == "demo"
    assert len(shown.cells) == 8 + 3 * 7
    assert shown.tags.count("tr") == 1 + len(rows), "what could not be measured has no row"
    assert rows[0] == [str(configuration()), "1,201/s", "1,000/s", "4.00 ms", "failed", "0.9500", "1"]
    assert [row[1] for row in rows] == ["1,201/s", "0/s", ""], "what is not known comes last"


def test_names_from_elsewhere_cannot_write_html() -> None:
    one = configuration().model_copy(update={"variant_name": NASTY})
    shown = Cells(Study(header(name=NASTY), (trial(1, live(), one),))._repr_html_())
    assert set(shown.tags) == {"table", "caption", "tr", "th", "td"}
    assert shown.attributes == set()
    assert sum(NASTY in cell for cell in shown.cells) == 2


def test_the_files_are_plain_json(tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    store.open(header())
    store.add(trial(7, live()))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "study.json", "trials/0007.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "study.json").read_text())["schema_version"] == 1
