"""What the rules refuse, which class a priority is, and how the executor's time is divided."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import ConfigError
from cluster.scheduling import Scheduling


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"classes": []}, "at least 1"),
        ({"classes": [{"name": "normal"}, {"name": "normal"}]}, "same name"),
        ({"classes": [{"name": "a"}]}, "default_class='normal' is none of"),
        ({"classes": [{"name": "normal", "share": 0.7}, {"name": "b", "share": 0.7}]}, "add up to 1.4"),
        ({"classes": [{"name": "normal", "weight": 0}]}, "greater than 0"),
        ({"classes": [{"name": "normal", "max_wait_s": 0}]}, "greater than 0"),
        ({"quota": {"rate_rps": 0, "burst": 1}}, "greater than 0"),
        ({"accuracy": {"step_up_at": 1.0}}, "not below step_down_at"),
        ({"late": "404"}, "late"),
        ({"weights": {}}, "weights"),
    ],
)
def test_what_does_not_make_sense_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Scheduling.model_validate(fields)


def test_more_cannot_be_kept_than_there_is() -> None:
    keeps = Scheduling.model_validate({"classes": [{"name": "high", "streams": 1, "slots": 4}, {"name": "normal"}]})
    keeps.refuse_misfits(streams=2, places=5)
    with pytest.raises(ConfigError, match="1 streams are kept"):
        keeps.refuse_misfits(streams=1, places=5)
    with pytest.raises(ConfigError, match="4 slots are kept"):
        keeps.refuse_misfits(streams=2, places=4)


def test_a_priority_is_the_so_many_th_class_and_none_the_default() -> None:
    assert [Scheduling().rank(priority) for priority in (0, 1, 2, 3, 4, 1 << 62, -1)] == [1, 0, 1, 2, 2, 2, 1]


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=5).filter(
        lambda classes: sum(share for _, share in classes) <= 1
    )
)
def test_portions_add_up_and_undercut_no_share(classes: list[tuple[float, float]]) -> None:
    rules = Scheduling.model_validate(
        {
            "default_class": "0",
            "classes": [{"name": str(i), "weight": w, "share": s} for i, (w, s) in enumerate(classes)],
        }
    )
    assert sum(rules.portions) == pytest.approx(1, abs=1e-4)
    assert all(portion >= share for portion, (_, share) in zip(rules.portions, classes, strict=True))


def test_it_survives_the_trip_through_user_config() -> None:
    rules = Scheduling.model_validate({"quota": {"rate_rps": 5, "burst": 2}, "late": "408"})
    assert Scheduling.model_validate(rules.model_dump(mode="json")) == rules
