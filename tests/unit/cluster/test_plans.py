"""Plans travel as JSON; configurations are equal where what they do is; what cannot be deployed is refused."""

from __future__ import annotations

import html.parser
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.plans import Configuration, Plan
from cluster.runtimes.base import RuntimeConfig
from cluster.slo import Slo

PLAN: dict[str, Any] = {"model_name": "m", "variant_id": "0" * 16, "variant_name": "cnn/int8", "store": "/models",
                        "runtime": {"name": "onnxruntime", "threads": 2}, "made_by": "a test"}  # fmt: skip

runtimes = st.builds(
    RuntimeConfig, name=st.sampled_from(["onnxruntime", "openvino", "torch"]), threads=st.integers(1, 8),
    streams=st.integers(1, 4),
)  # fmt: skip
configurations = st.builds(
    Configuration, variant_id=st.sampled_from(["0" * 16, "1" * 16]), variant_name=st.text(max_size=10),
    runtime=runtimes, max_batch_size=st.integers(1, 256), max_queued_requests=st.integers(1, 2048),
    num_replicas=st.integers(1, 4),
)  # fmt: skip
figures = st.dictionaries(
    st.text(max_size=8), st.none() | st.floats() | st.integers() | st.text(max_size=5), max_size=4
)


# Configuration


@given(one=configurations, other=configurations)
def test_the_key_is_equal_for_equal_configurations_and_blind_to_the_name(
    one: Configuration, other: Configuration
) -> None:
    same = one.model_copy(update={"variant_name": ""}) == other.model_copy(update={"variant_name": ""})
    assert (one.key == other.key) == same
    assert one.model_copy(update={"variant_name": other.variant_name}).key == one.key
    assert Configuration.model_validate_json(one.model_dump_json()).key == one.key


@pytest.mark.parametrize(
    "change",
    [
        {"variant_id": "1" * 16}, {"max_batch_size": 33}, {"max_queued_requests": 513}, {"num_replicas": 2},
        *({"runtime": RuntimeConfig.model_validate(fields)} for fields in (
            {"threads": 2}, {"streams": 2}, {"inter_op_threads": 2}, {"name": "openvino"},
        )),
    ],
    ids=str,
)  # fmt: skip
def test_the_key_follows_every_field_that_is_deployed(change: dict[str, Any]) -> None:
    one = Configuration(variant_id="0" * 16, variant_name="cnn/int8", runtime=RuntimeConfig())
    assert one.model_copy(update=change).key != one.key


def test_the_key_never_changes() -> None:
    """Studies on disk are resumed by it."""
    one = Configuration(variant_id="0" * 16, variant_name="cnn/int8", runtime=RuntimeConfig())
    assert one.key == "c1ddfa4cd768"


def test_a_plan_has_the_key_of_what_it_deploys() -> None:
    plan = Plan.model_validate(PLAN)
    fields = {name: value for name, value in PLAN.items() if name in Configuration.model_fields}
    assert plan.key == Configuration.model_validate(fields).key
    assert plan.model_copy(update={"model_name": "other", "predicted": {"x": 1}}).key == plan.key


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "cnn/int8 on onnxruntime, max_batch_size 32, queue 512"),
        (
            {"runtime": RuntimeConfig(streams=2), "max_batch_size": 8, "num_replicas": 3},
            "cnn/int8 on onnxruntime 2x1, max_batch_size 8, queue 512, 3 replicas",
        ),
    ],
)
def test_it_says_what_it_is(fields: dict[str, Any], said: str) -> None:
    usual = {"variant_id": "0" * 16, "variant_name": "cnn/int8", "runtime": RuntimeConfig()}
    assert str(Configuration.model_validate(usual | fields)) == said


# Plan


@given(
    one=configurations, cpus=st.floats(0.01, 64), timeout_s=st.none() | st.floats(0.001, 100), predicted=figures,
    measured=figures, made_by=st.text(max_size=20),
)
def test_a_trip_through_json_changes_nothing(
    one: Configuration, cpus: float, timeout_s: float | None, predicted: dict[str, Any], measured: dict[str, Any],
    made_by: str,
) -> None:  # fmt: skip
    """Also where something could not be told, which JSON cannot write as an infinity."""
    made = Plan(
        **one.model_dump(), model_name="m", store="/s", num_cpus_per_replica=cpus, default_timeout_s=timeout_s,
        slo=Slo().model_dump(mode="json"), predicted=predicted, measured=measured, made_by=made_by,
    )  # fmt: skip
    assert Plan.model_validate_json(made.model_dump_json()) == made
    written = json.dumps(made.model_dump(mode="json"), allow_nan=False)
    assert Plan.model_validate_json(written) == made
    assert Slo.model_validate(made.slo) == Slo()


def test_what_is_no_number_is_none() -> None:
    plan = Plan.model_validate(PLAN | {"predicted": {"a": math.inf, "b": math.nan, "c": 1.5, "d": "inf", "e": True}})
    assert plan.predicted == {"a": None, "b": None, "c": 1.5, "d": "inf", "e": True}


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Plan.model_validate(PLAN).runtime = RuntimeConfig()


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("max_batch_size", "max_queued_requests", "num_replicas")),
        *({name: 0.0} for name in ("num_cpus_per_replica", "default_timeout_s")),
        {"num_cpus_per_replica": math.inf},
        {"runtime": {"threads": 0}},
        {"max_batchsize": 8},
        {"predicted": [1]},
        {"schema_version": 1},
    ],
    ids=lambda value: next(iter(value)),
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(PLAN | wrong)
    assert str(caught.value.errors()[0]["loc"][0]) in wrong


# In a notebook


class Cells(html.parser.HTMLParser):
    """What a browser would show, and every element and attribute that it would make."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in ("th", "td", "caption"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


def test_it_shows_itself_as_a_table() -> None:
    plan = Plan.model_validate(
        PLAN | {"measured": {"slo_rate_rps": 1201.4, "latency_p99_s": None, "sure": True}, "predicted": {"x": 0.5}}
    )
    cells = Cells(plan._repr_html_()).cells
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == {
        "serves": "cnn/int8 on onnxruntime 1x2, max_batch_size 32, queue 512",
        "as": "m, 1 CPUs a replica",
        "slo_rate_rps (measured)": "1,201",
        "x (predicted)": "0.5",
        "because": "a test",
    }


NASTY = "<script>alert(1)</script><img src=x onerror='a()'>\"&amp;"


def test_names_from_elsewhere_cannot_write_html() -> None:
    fields = {"variant_name": NASTY, "model_name": NASTY, "made_by": NASTY, "measured": {NASTY: 1.0}}
    shown = Cells(Plan.model_validate(PLAN | fields | {"predicted": {NASTY: 2.0}})._repr_html_())
    assert set(shown.tags) == {"table", "tr", "th", "td"}
    assert shown.attributes == {"style"}
    assert sum(NASTY in cell for cell in shown.cells) == 5
