"""The SLO file: what is left out has its default, what contradicts itself or the machine is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster import stats
from cluster.errors import ConfigError
from cluster.slo import AccuracyFloor, Budget, Slo, TraceRate, load_slo
from cluster.variants import Accuracy, Difference

GIB = 1 << 30
amounts = st.floats(1e-3, 1e6)
floors = st.builds(
    AccuracyFloor, max_drop=st.none() | st.floats(0, 0.999), minimum=st.none() | st.floats(0.001, 0.999),
    max_increase=st.none() | st.floats(0, 1), maximum=st.none() | st.floats(0.001, 1e6),
)  # fmt: skip
budgets = st.builds(Budget, cores=st.none() | st.integers(1, 512), memory_mib=st.none() | st.integers(1, 1 << 20))
slos = st.builds(
    Slo, model_name=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True), accuracy=floors,
    latency_p99_ms=st.floats(0.01, 60_000), rate_rps=amounts, budget=budgets,
    objective=st.sampled_from(["max_rate", "min_latency", "min_cost"]),
)  # fmt: skip


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "slo.yaml"
    path.write_text(text)
    return path


def accuracy(correct: int, total: int, to_root: tuple[float, float] | None = None) -> Accuracy:
    """`to_root`: the one-sided bounds of the difference."""
    difference = to_root and Difference(
        other_id="0" * 16, value=sum(to_root) / 2, interval=to_root, bounds=to_root, worst_class_drop=0.0
    )
    return Accuracy(
        value=correct / total, correct=correct, total=total, interval=stats.jeffreys(correct, total), dataset="digits",
        runtime="onnxruntime", to_root=difference,
    )  # fmt: skip


# What the file says


def test_every_default(tmp_path: Path) -> None:
    expected = {
        "schema_version": 1, "model_name": "classifier",
        "accuracy": {"max_drop": 0.005, "minimum": None, "max_increase": 0.05, "maximum": None},
        "latency_p99_ms": 50.0, "rate_rps": None, "trace": None, "budget": {"cores": None, "memory_mib": None},
        "objective": "max_rate",
    }  # fmt: skip
    assert load_slo(None).model_dump() == expected
    assert load_slo(write(tmp_path, "{}")).model_dump() == expected
    assert load_slo(None).latency_p99_s == 0.05
    assert load_slo(None).peak_rps() is None


def test_the_docstrings_file_is_read(tmp_path: Path) -> None:
    import cluster.slo

    lines = str(cluster.slo.__doc__).splitlines()
    slo = load_slo(write(tmp_path, "\n".join(line[4:] for line in lines if line.startswith("    "))))
    assert (slo.accuracy.max_drop, slo.accuracy.minimum) == (0.005, None)
    assert (slo.rate_rps, slo.peak_rps(), slo.objective) == (400.0, 400.0, "min_cost")
    assert slo.budget == Budget(cores=4, memory_mib=4096)


@given(slo=slos)
def test_a_trip_through_yaml_and_json_changes_nothing(slo: Slo, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("slo") / "slo.yaml"
    path.write_text(yaml.safe_dump(slo.model_dump(mode="json")))
    assert load_slo(path) == slo
    assert Slo.model_validate(json.loads(json.dumps(slo.model_dump(mode="json")))) == slo


# What is refused: with the file, the field, the value and the way out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latency_p99_ms: 0", "latency_p99_ms=0: Input should be greater than 0"),
        ("latency_p99_ms: 60001", "latency_p99_ms=60001: Input should be less than or equal to 60000"),
        ("latency_p99_ms: 50ms", "latency_p99_ms='50ms': Input should be a valid number"),
        ("latency_p99_ms: .nan", "latency_p99_ms=nan: Input should be"),
        ("rate_rps: .inf", "rate_rps=inf: Input should be a finite number"),
        ("rate_rps: -1", "rate_rps=-1: Input should be greater than 0"),
        ("rate_rps: yes", "rate_rps=True: is on or off, and no field of an SLO is; write a number, or leave"),
        ("accuracy: {max_drop: no}", "accuracy.max_drop=False: is on or off"),
        ("accuracy: {max_drop: -0.1}", "accuracy.max_drop=-0.1: Input should be greater than or equal to 0"),
        ("accuracy: {max_drop: 1}", "accuracy.max_drop=1: Input should be less than 1"),
        ("accuracy: {minimum: 91}", "accuracy.minimum=91: Input should be less than 1"),
        ("accuracy: {max_increase: 5}", "accuracy.max_increase=5: Input should be less than or equal to 1"),
        ("accuracy: {max_increase: no}", "accuracy.max_increase=False: is on or off"),
        ("accuracy: {maximum: 0}", "accuracy.maximum=0: Input should be greater than 0"),
        ("accuracy: 0.91", "accuracy=0.91: Input should be"),
        ("budget: {cores: 0}", "budget.cores=0: Input should be greater than or equal to 1"),
        ("budget: {cores: 1.5}", "budget.cores=1.5: Input should be a valid integer"),
        ("budget: {memory_mib: 0}", "budget.memory_mib=0"),
        ("budget: {gpus: 1}", "budget.gpus is no field of an SLO; the fields in budget are cores, memory_mib"),
        ("accuracy: {drop: 1}", "accuracy.drop is no field of an SLO; the fields in accuracy are max_drop, minimum, "),
        ("latency_ms: 5", "latency_ms is no field of an SLO; the fields are schema_version, model_name, accuracy,"),
        ("objective: cheap", "objective='cheap': Input should be 'max_rate', 'min_latency' or 'min_cost'"),
        ("model_name: a/b", "model_name='a/b': String should match"),
        ("schema_version: 2", "schema_version=2: Input should be 1"),
        ("trace: {scale: 2}", "trace.path is missing; write it"),
        ("trace: {path: t.csv, scale: 0}", "trace.scale=0: Input should be greater than 0"),
        ("{rate_rps: 5, trace: {path: t.csv}}", "rate_rps=5 and trace=t.csv both say the load; keep one"),
        ("objective: min_cost", "objective=min_cost needs a load to be judged at; set rate_rps or trace"),
        ("objective: min_latency", "objective=min_latency needs a load to be judged at; set rate_rps or trace"),
        ("{rate_rps: -1, latency_p99_ms: 0}", "latency_p99_ms=0: .*; rate_rps=-1: "),
        ("", "holds nothing; `sluice init` writes one"),
        ("- 1\n- 2", r"holds '\[1, 2\]', not fields; `sluice init` writes one"),
        ("a: b: c", "is no readable YAML .*line 1.*`sluice init`"),
        ("rate_rps: 2026-13-45", "is no readable YAML .*month.*`sluice init`"),
        ("rate_rps: !!python/object/apply:os.getpid []", "is no readable YAML .*could not determine a constructor"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"slo.yaml:? .*{said}"):
        load_slo(write(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml is no readable YAML .*No such file.*`sluice init`"):
        load_slo(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00rate")
    with pytest.raises(ConfigError, match=r"binary\.yaml is no readable YAML"):
        load_slo(tmp_path / "binary.yaml")


# Floors


def test_left_out_the_floor_is_half_a_point_below_the_trained_model() -> None:
    assert AccuracyFloor() == AccuracyFloor(max_drop=0.005, max_increase=0.05)
    assert AccuracyFloor.model_validate({"max_drop": None, "minimum": None}).max_drop == 0.005
    assert AccuracyFloor(minimum=0.9).max_drop is None, "who names another floor means that one"
    assert AccuracyFloor(minimum=0.9).max_increase == 0.05
    assert AccuracyFloor(maximum=0.4) == AccuracyFloor(max_drop=0.005, max_increase=None, maximum=0.4)


@pytest.mark.parametrize(
    ("floor", "measured", "verdict"),
    [
        ({"max_drop": 0.005}, accuracy(9000, 10_000, (-0.004, 0.001)), "holds"),
        ({"max_drop": 0.005}, accuracy(9000, 10_000, (-0.006, -0.001)), "unclear"),
        ({"max_drop": 0.005}, accuracy(9000, 10_000, (-0.009, -0.006)), "fails"),
        ({"max_drop": 0.0}, accuracy(100, 10_000), "holds"),  # the trained model, however bad
        ({"minimum": 0.89}, accuracy(9000, 10_000, (-0.9, -0.8)), "holds"),
        ({"minimum": 0.9}, accuracy(9000, 10_000), "unclear"),
        ({"minimum": 0.91}, accuracy(9000, 10_000), "fails"),
        ({"max_drop": 0.005, "minimum": 0.89}, accuracy(9000, 10_000, (-0.001, 0.001)), "holds"),
        ({"max_drop": 0.005, "minimum": 0.9}, accuracy(9000, 10_000, (-0.001, 0.001)), "unclear"),
        ({"max_drop": 0.005, "minimum": 0.89}, accuracy(9000, 10_000, (-0.006, 0.001)), "unclear"),
        ({"max_drop": 0.005, "minimum": 0.91}, accuracy(9000, 10_000, (-0.006, 0.001)), "fails"),
        ({"max_drop": 0.005, "minimum": 0.9}, accuracy(9000, 10_000, (-0.009, -0.006)), "fails"),
        ({}, None, "unclear"),
        ({"minimum": 0.01}, None, "unclear"),
    ],
)
def test_the_verdict(floor: dict[str, float], measured: Accuracy | None, verdict: str) -> None:
    assert AccuracyFloor.model_validate(floor).verdict(measured) == verdict


@given(
    counts=st.tuples(st.integers(0, 500), st.integers(0, 500)), drops=st.tuples(amounts, amounts), low=st.floats(-1, 1)
)
def test_of_two_floors_the_worse_verdict_counts(
    counts: tuple[int, int], drops: tuple[float, float], low: float
) -> None:
    right, wrong = counts
    measured = accuracy(right, right + wrong + 1, (low, min(1.0, low + 0.1)))
    drop, minimum = (0.999 * value / 1e6 + 1e-6 for value in drops)
    alone = [AccuracyFloor(max_drop=drop).verdict(measured), AccuracyFloor(minimum=minimum).verdict(measured)]
    order = ["fails", "unclear", "holds"]
    assert AccuracyFloor(max_drop=drop, minimum=minimum).verdict(measured) == min(alone, key=order.index)


@pytest.mark.parametrize(
    ("floor", "said"),
    [
        ({}, "at most 0.5 points below the trained model"),
        ({"max_drop": 0.0025}, "at most 0.25 points below the trained model"),
        ({"minimum": 0.9125}, "at least 91.25%"),
        ({"max_drop": 0, "minimum": 0.9}, "at most 0 points below the trained model and at least 90%"),
        ({"max_increase": 0.05}, "at most 0.5 points below the trained model"),
        (
            {"max_increase": 0.1, "maximum": 0.4},
            "at most 0.5 points below the trained model; where an error is measured, at most 10% above the trained "
            "model's error and an error of at most 0.4",
        ),
        (
            {"minimum": 0.9, "maximum": 12},
            "at least 90%; where an error is measured, an error of at most 12",
        ),
    ],
)
def test_a_floor_says_its_own_number(floor: dict[str, float], said: str) -> None:
    assert str(AccuracyFloor.model_validate(floor)) == said


def error(value: float, to_root: tuple[float, float] | None = None, *, bounded: bool = True) -> Accuracy:
    """A mean squared error, known to a tenth of itself; `to_root`: the bounds of its improvement."""
    difference = to_root and Difference(
        other_id="0" * 16, value=sum(to_root) / 2, interval=to_root, bounds=to_root, relative=True
    )
    return Accuracy(
        metric="mse", higher_is_better=False, value=value, total=100, interval=(0.88 * value, 1.12 * value),
        bounds=(0.9 * value, 1.1 * value) if bounded else None, dataset="etth1", runtime="onnxruntime",
        to_root=difference,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("floor", "measured", "verdict"),
    [
        ({}, error(0.4, (-0.05, 0.01)), "holds"),
        ({}, error(0.4, (-0.06, -0.01)), "unclear"),
        ({}, error(0.4, (-0.09, -0.06)), "fails"),
        ({}, error(0.4), "holds"),  # the trained model, however bad
        ({"max_drop": 0.0, "minimum": 0.99}, error(0.4, (-0.04, 0.01)), "holds"),  # of shares
        ({"max_increase": 0.1}, error(0.4, (-0.09, -0.06)), "holds"),
        ({"maximum": 0.45}, error(0.4, (-9.0, -8.0)), "holds"),
        ({"maximum": 0.42}, error(0.4), "unclear"),
        ({"maximum": 0.35}, error(0.4), "fails"),
        ({"maximum": 0.45}, error(0.4, bounded=False), "unclear"),
        ({"maximum": 0.45, "max_increase": 0.05}, error(0.4, (-0.09, -0.06)), "fails"),
        ({"maximum": 0.35, "max_increase": 0.05}, error(0.4, (-0.06, -0.01)), "fails"),
        ({"maximum": 0.1}, accuracy(9000, 10_000, (-0.004, 0.001)), "holds"),  # of errors
    ],
)
def test_the_verdict_on_an_error(floor: dict[str, float], measured: Accuracy, verdict: str) -> None:
    assert AccuracyFloor.model_validate(floor).verdict(measured) == verdict


@pytest.mark.parametrize(
    ("bounds", "verdict"), [((0.91, 0.95), "holds"), ((0.89, 0.95), "unclear"), ((0.8, 0.89), "fails")]
)
def test_a_share_that_counts_nothing_is_judged_on_its_bounds(bounds: tuple[float, float], verdict: str) -> None:
    area = Accuracy(
        metric="roc_auc", value=sum(bounds) / 2, total=100, interval=bounds, bounds=bounds, dataset="d", runtime="torch"
    )
    assert AccuracyFloor(minimum=0.9).verdict(area) == verdict
    assert AccuracyFloor(minimum=0.9).verdict(area.model_copy(update={"bounds": None})) == "unclear"


@given(right=st.integers(0, 300), wrong=st.integers(1, 300), minimum=st.floats(0.01, 0.99))
def test_bounds_of_a_count_decide_as_the_count_does(right: int, wrong: int, minimum: float) -> None:
    counted = accuracy(right, right + wrong)
    bounds = stats.lower_bound(right, right + wrong), stats.upper_bound(right, right + wrong)
    floor = AccuracyFloor(minimum=minimum)
    assert floor.verdict(counted) == floor.verdict(counted.model_copy(update={"bounds": bounds}))


def test_a_floor_says_what_it_asks_of_a_figure() -> None:
    floor = AccuracyFloor(max_increase=0.1, maximum=0.4)
    assert floor.of(accuracy(9, 10)) == "at most 0.5 points below the trained model"
    assert floor.of(error(0.3)) == "at most 10% above the trained model's error and an error of at most 0.4"
    assert floor.of(None) == str(floor)
    assert (floor.allowed(accuracy(9, 10)), floor.allowed(error(0.3))) == (0.005, 0.1)
    assert AccuracyFloor(maximum=0.4).allowed(error(0.3)) is None


# Traces


def with_trace(folder: Path, content: str, scale: float = 1.0) -> Path:
    (folder / "loads").mkdir()
    (folder / "loads" / "promotion.csv").write_text(content)
    return write(folder, f"trace: {{path: loads/promotion.csv, scale: {scale}}}\nobjective: min_cost\n")


def test_a_trace_lies_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is read from, and wherever the study is gone on with."""
    path = with_trace(tmp_path, "10\n30\n20\n", scale=2.5)
    slo = load_slo(path)
    assert slo.trace is not None
    assert slo.trace.path == (tmp_path / "loads" / "promotion.csv").resolve()
    assert slo.peak_rps() == 75.0
    assert list(slo.trace.read().rates_rps) == [25.0, 75.0, 50.0]
    monkeypatch.chdir(tmp_path)
    assert load_slo(Path("slo.yaml")) == slo
    monkeypatch.chdir(tmp_path / "loads")
    assert load_slo(Path("../slo.yaml")) == slo
    assert slo.peak_rps() == 75.0
    other = tmp_path / "elsewhere.csv"
    other.write_text("4\n")
    absolute = write(tmp_path, f"trace: {{path: {other}}}")
    assert load_slo(absolute).peak_rps() == 4.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"trace\.path=.*promotion\.csv cannot be read .*No such file.*name a CSV of rates"),
        (b"\xff\xfe", r"trace\.path=.*promotion\.csv cannot be read .*name a CSV of rates"),
        (b"1\nmany\n", r"promotion\.csv:2: .* is not numeric"),
        (b"", r"promotion\.csv holds no rates"),
    ],
)
def test_a_trace_that_is_none_is_refused_when_the_file_is_read(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = with_trace(tmp_path, "1\n")
    trace = tmp_path / "loads" / "promotion.csv"
    trace.unlink() if content is None else trace.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_slo(path)


# What the machine and the trained model cannot


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"budget": {"cores": 5}}, r"budget\.cores=5 is more than the 4 .*lower it, or tune on a larger machine"),
        ({"budget": {"memory_mib": 8193}}, r"budget\.memory_mib=8193 is more than the machine's 8192; lower it"),
        ({"accuracy": {"minimum": 0.95}}, r"accuracy\.minimum=0\.95 .*\(0\.9000, 95% interval 0\.89.* to 0\.90.*train"),
    ],
)
def test_what_is_impossible_is_refused(fields: dict[str, Any], said: str) -> None:
    slo = Slo.model_validate(fields)
    with pytest.raises(ConfigError, match=said):
        slo.refuse_impossible(cores=4, memory_bytes=8 * GIB, root=accuracy(9000, 10_000))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"budget": {"cores": 4, "memory_mib": 8192}},
        {"accuracy": {"minimum": 0.9}},  # too near to tell: measurements decide
        {"accuracy": {"max_drop": 0.0}},
    ],
)
def test_what_may_be_possible_is_not(fields: dict[str, Any]) -> None:
    slo = Slo.model_validate(fields)
    slo.refuse_impossible(cores=4, memory_bytes=8 * GIB, root=accuracy(9000, 10_000))
    slo.refuse_impossible(cores=4, memory_bytes=8 * GIB, root=None)


@pytest.mark.parametrize(
    ("floor", "root", "said"),
    [
        ({"minimum": 0.9}, error(0.4), r"accuracy\.minimum=0\.9 bounds a share, .* by mse, .*set accuracy\.maximum"),
        ({"maximum": 0.4}, accuracy(9, 10), r"accuracy\.maximum=0\.4 bounds an error, .* accuracy, .*\.minimum in"),
        ({"maximum": 0.3}, error(0.4), r"accuracy\.maximum=0\.3 is below .* \(mse 0\.4, 95% interval 0\.352 to 0\.448"),
    ],
)
def test_a_floor_of_another_kind_or_that_the_trained_model_misses_is_refused(
    floor: dict[str, float], root: Accuracy, said: str
) -> None:
    slo = Slo.model_validate({"accuracy": floor})
    with pytest.raises(ConfigError, match=said):
        slo.refuse_impossible(cores=4, memory_bytes=8 * GIB, root=root)
    slo.refuse_impossible(cores=4, memory_bytes=8 * GIB, root=None)


def test_a_maximum_that_the_trained_model_may_keep_is_not() -> None:
    for maximum in (0.38, 0.42, 1.0):
        slo = Slo(accuracy=AccuracyFloor(maximum=maximum))
        slo.refuse_impossible(cores=4, memory_bytes=8 * GIB, root=error(0.4))


def test_a_trace_that_asks_for_nothing_is_refused(tmp_path: Path) -> None:
    slo = load_slo(with_trace(tmp_path, "0\n0\n"))
    with pytest.raises(ConfigError, match=r"promotion\.csv holds no request"):
        slo.refuse_impossible(cores=4, memory_bytes=8 * GIB, root=None)
    trace = TraceRate(path=tmp_path / "loads" / "promotion.csv")
    assert trace.read().rates_rps.max() == 0
