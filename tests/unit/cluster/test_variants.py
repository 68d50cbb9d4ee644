"""A variant's id is its content's: stable, and blind to what does not belong to the content."""

from __future__ import annotations

import copy
import doctest
import hashlib
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster import variants
from cluster.errors import ArtifactError
from cluster.variants import Accuracy, ArtifactFile, Difference, Pass, SequenceSpec, TensorSpec, Variant

IMAGE = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))
LOGITS = TensorSpec(name="logits", datatype="FP32", shape=(-1, 10))
MODEL = ArtifactFile(path="model.onnx", sha256="ab" * 32, size_bytes=7)
ACCURACY = Accuracy(value=0.9, correct=9, total=10, interval=(0.6, 0.99), dataset="digits", runtime="onnxruntime")
DIFFERENCE = Difference(
    other_id="0" * 16, value=-0.01, interval=(-0.02, 0.0), bounds=(-0.018, -0.002), worst_class_drop=0.03
)
COMPARED = ACCURACY.model_copy(update={"runtime": "openvino", "to_parent": DIFFERENCE, "to_root": DIFFERENCE})
ERROR = Accuracy(
    metric="mse", higher_is_better=False, value=0.4, total=10, interval=(0.3, 0.5), bounds=(0.32, 0.48),
    dataset="etth1", runtime="onnxruntime",
    to_root=Difference(other_id="1" * 16, value=-0.02, interval=(-0.05, 0.01), bounds=(-0.04, 0.0), relative=True),
)  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)


def make(**fields: Any) -> Variant:
    given_fields = {"name": "cnn/fp32", "family": "cnn", "format": "onnx", "files": (MODEL,), "inputs": (IMAGE,),
                    "outputs": (LOGITS,), "created_at": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    return Variant.model_validate(given_fields | fields)


def test_the_docstrings_example_is_true() -> None:
    found = doctest.testmod(variants)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_id_never_changes() -> None:
    """Stores on disk are full of these: a change here makes all of them unreadable, so raise SCHEMA_VERSION with it."""
    content = (
        '{"family":"cnn","files":[{"path":"model.onnx","sha256":"' + "ab" * 32 + '","size_bytes":7}],"format":"onnx",'
        '"inputs":[{"datatype":"UINT8","name":"image","shape":[-1,1,28,28]}],"labels":["caf\\u00e9"],'
        '"outputs":[{"datatype":"FP32","name":"logits","shape":[-1,10]}],"parent_id":"0123456789abcdef",'
        '"passes":[{"name":"quantize","params":{"bits":8,"ratio":0.5}}],"precision":"int8","preprocessing":"",'
        '"schema_version":2}'
    )
    passes = (Pass(name="quantize", params={"ratio": 0.5, "bits": 8}),)
    made = make(parent_id="0123456789abcdef", passes=passes, labels=("café",), precision="int8")
    assert made.id == hashlib.sha256(content.encode()).hexdigest()[:16]


def test_the_id_is_the_same_in_another_process() -> None:
    code = (
        "from tests.unit.cluster.test_variants import make, Pass\n"
        "print(make(passes=(Pass(name='p', params={'b': {'x': 1, 'y': 2}, 'a': 0.1}),)).id)"
    )
    ours = make(passes=(Pass(name="p", params={"a": 0.1, "b": {"y": 2, "x": 1}}),)).id
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == ours


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"}, {"accuracies": (ACCURACY,)}, {"accuracies": (ERROR,)}, {"provenance": {"by": "me"}},
        {"created_at": "2030"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_id_is_blind_to_what_is_said_about_the_content(change: dict[str, Any]) -> None:
    assert make(**change).id == make().id
    assert make().model_copy(update=change).id == make().id


@pytest.mark.parametrize(
    "change",
    [
        {"family": "lstm"},
        {"parent_id": "00" * 8},
        {"passes": (Pass(name="prune"),)},
        {"format": "torch_export"},
        {"files": ()},
        {"files": (MODEL.model_copy(update={"sha256": "cd" * 32}),)},
        {"inputs": (IMAGE.model_copy(update={"shape": (-1, 3, 28, 28)}),)},
        {"outputs": (LOGITS.model_copy(update={"name": "scores"}),)},
        {"labels": ("cat", "dog")},
        {"preprocessing": "none"},
        {"schema_version": 3},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_id_follows_the_content(change: dict[str, Any]) -> None:
    assert make(**change).id != make().id
    original = make()
    assert original.id == make().id  # hashed before the copy is made, which must not carry it over
    assert original.model_copy(update=change).id == make(**change).id


@settings(deadline=None)
@given(params=st.dictionaries(st.text(), json_values, max_size=4), labels=st.lists(st.text(), max_size=3))
def test_a_trip_through_json_changes_nothing(params: dict[str, Any], labels: list[str]) -> None:
    before = make(passes=(Pass(name="p", params=params),), labels=tuple(labels), accuracies=(ACCURACY, COMPARED, ERROR))
    data = json.loads(json.dumps(before.model_dump(mode="json")))
    assert data.pop("id") == before.id
    after = Variant.model_validate(data)
    assert after.id == before.id
    assert after == before


def test_copies_and_hashing_do_not_disturb_equality() -> None:
    first, second = make(), make()
    assert first.id
    assert first == second, "one has been hashed and the other not"
    assert copy.copy(first) == copy.deepcopy(first) == pickle.loads(pickle.dumps(first)) == second


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make().name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        MODEL.size_bytes = 8


@pytest.mark.parametrize("each", [Variant, TensorSpec, ArtifactFile, Pass, Accuracy, Difference])
def test_fields_that_nobody_declared_are_refused(each: type[Variant]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        each.model_validate({"surprise": 1})


@pytest.mark.parametrize(
    ("each", "fields"),
    [
        # What JSON would turn into something else, and so give another content's id.
        *((Pass, {"name": "p", "params": {"x": x}}) for x in (math.inf, math.nan, (1, 2), {1: 2}, {1}, b"x", object())),
        (Variant, make().model_dump(exclude={"id"}) | {"precision": "fp8"}),
        (Accuracy, ACCURACY.model_dump() | {"value": math.nan}),
        (Accuracy, ACCURACY.model_dump() | {"interval": (0.1, math.inf)}),
        (Difference, DIFFERENCE.model_dump() | {"bounds": (0.1,)}),
        (Difference, DIFFERENCE.model_dump() | {"worst_class_drop": math.inf}),
        (Accuracy, ERROR.model_dump() | {"bounds": (0.1, math.nan)}),
        (TensorSpec, {"name": "x", "datatype": "FLOAT", "shape": (1,)}),
        (TensorSpec, {"name": "x", "datatype": "FP32", "shape": (-2,)}),
        (ArtifactFile, {"path": "../model.onnx", "sha256": "ab" * 32, "size_bytes": 1}),
        (ArtifactFile, {"path": "model.onnx\n", "sha256": "ab" * 32, "size_bytes": 1}),
        (ArtifactFile, {"path": "model.onnx", "sha256": "../../etc/passwd", "size_bytes": 1}),
        (ArtifactFile, {"path": "model.onnx", "sha256": "AB" * 32, "size_bytes": 1}),
        (ArtifactFile, {"path": "model.onnx", "sha256": "ab" * 32, "size_bytes": -1}),
    ],
)
def test_values_out_of_range_are_refused(each: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        each.model_validate(fields)


def test_accuracy_is_known_by_the_runtime_that_it_was_measured_in() -> None:
    """Nothing is said of a runtime in which nothing was measured: executors round differently."""
    both = make(accuracies=(ACCURACY, COMPARED))
    assert both.accuracy == both.accuracy_in("onnxruntime") == ACCURACY
    assert both.accuracy_in("openvino") == COMPARED
    assert both.accuracy_in("torch") is None
    assert make(accuracies=(COMPARED, ACCURACY)).accuracy == COMPARED, "the one that it was made for comes first"
    assert make().accuracy is None
    assert make().accuracy_in("onnxruntime") is None


def test_the_size_is_that_of_all_files_and_the_model_is_the_one_called_so() -> None:
    weights = ArtifactFile(path="weights.safetensors", sha256="cd" * 32, size_bytes=5)
    both = make(files=(weights, MODEL))
    assert both.size_bytes == 12
    assert both.model_file == MODEL


@pytest.mark.parametrize("names", [(), ("weights.bin",), ("model.onnx", "model.pt2"), ("sub/model.onnx",)])
def test_not_exactly_one_model_file_is_an_error(names: tuple[str, ...]) -> None:
    files = tuple(MODEL.model_copy(update={"path": name}) for name in names)
    with pytest.raises(ArtifactError, match=r"must have one"):
        _ = make(files=files).model_file


def test_a_manifest_from_before_there_were_errors_is_read_as_it_was_meant() -> None:
    """Stores on disk are full of these."""
    difference = {
        "other_id": "0123456789abcdef", "value": -0.002, "interval": [-0.01, 0.006], "bounds": [-0.009, 0.004],
        "worst_class_drop": 0.02,
    }  # fmt: skip
    written = make().model_dump(mode="json", exclude={"id"}) | {
        "accuracies": [
            {
                "metric": "accuracy", "value": 0.94, "correct": 423, "total": 450, "interval": [0.91, 0.96],
                "confidence": 0.95, "dataset": "digits", "runtime": "onnxruntime", "to_parent": difference,
                "to_root": None,
            }
        ]
    }  # fmt: skip
    before = Variant.model_validate_json(json.dumps(written))
    assert before.id == make().id
    accuracy = before.accuracy
    assert accuracy is not None
    assert (accuracy.higher_is_better, accuracy.bounds, accuracy.correct) == (True, None, 423)
    assert accuracy.to_parent is not None
    assert (accuracy.to_parent.relative, accuracy.to_parent.worst_class_drop) == (False, 0.02)


@pytest.mark.parametrize(
    ("metric", "value", "higher_is_better", "said"),
    [
        ("accuracy", 0.91052, True, "0.9105"),
        ("roc_auc", 0.9, True, "roc_auc 0.9000"),
        ("mse", 0.312141, False, "mse 0.3121"),
        ("mse", 0.000312141, False, "mse 0.0003121"),
        ("frechet", 112.34, False, "frechet 112.3"),
    ],
)
def test_a_figure_says_what_it_is_with_digits_that_tell(
    metric: str, value: float, higher_is_better: bool, said: str
) -> None:
    assert variants.figure(metric, value, higher_is_better=higher_is_better) == said


WINDOW = TensorSpec(name="window", datatype="FP32", shape=(-1, 336, 7))
LENGTHS = SequenceSpec(multiple_of=24, shortest=24, longest=336)


def test_lengths_are_part_of_the_id_where_there_are_some_and_nowhere_else() -> None:
    """`test_the_id_never_changes` is of a variant without."""
    plain, ragged = make(), make(sequence=LENGTHS)
    assert plain.id != ragged.id != make(sequence=LENGTHS.model_copy(update={"shortest": 48})).id
    assert make(sequence=None).id == plain.id
    assert Variant.model_validate_json(ragged.model_dump_json(exclude={"id"})) == ragged
    before = plain.model_dump(mode="json", exclude={"id", "sequence"})
    assert Variant.model_validate(before).id == plain.id, "a manifest from before there was the field"


@pytest.mark.parametrize(
    ("multiple", "shortest", "longest"), [(24, 24, 100), (24, 30, 96), (1, 5, 4), (24, 0, 24), (0, 1, 1)]
)
def test_lengths_that_are_no_whole_steps_are_refused(multiple: int, shortest: int, longest: int) -> None:
    with pytest.raises(ValidationError):
        SequenceSpec(multiple_of=multiple, shortest=shortest, longest=longest)


def test_an_example_has_the_longest_sequences() -> None:
    assert LENGTHS.freed(WINDOW).shape == (-1, -1, 7)
    ragged = make(inputs=(LENGTHS.freed(WINDOW),), sequence=LENGTHS)
    assert ragged.example_shape(ragged.inputs[0], 5) == (5, 336, 7)
    free = TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 7))
    assert make(inputs=(free,)).example_shape(free, 5) == (5, 1, 7)
    assert make().example_shape(IMAGE, 2) == (2, 1, 28, 28)
    assert [rows for rows in (0, 23, 24, 36, 336, 360) if LENGTHS.takes(rows)] == [24, 336]
