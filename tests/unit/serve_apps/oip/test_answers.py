"""What is told of a model is told of what is resident now, whoever asks."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import NotReady, UnknownModel
from serve_apps.executor import Model
from serve_apps.oip import answers
from serve_apps.oip.served import Served
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.oip.served import Host, infer


def two_versions(host: Host) -> None:
    """A better one stands before the one that the host was told to serve."""
    told, other = host.batcher.models[0], Model("sum/better", "b" * 16, 0.95, (infer,))
    host.batcher.reconfigure(models=(told, other))
    host.served = Served("adder", host.batcher.models, host.variant.inputs, host.variant.outputs)


def test_the_version_that_it_was_told_to_serve_comes_first() -> None:
    async def test() -> None:
        host = Host()
        two_versions(host)
        assert host.batcher.models[0].version == "b" * 16, "by accuracy it is the other"
        versions = [host.variant.id, "b" * 16]
        assert answers.versions(host) == answers.metadata(host)["versions"] == versions
        assert answers.configuration(host)["version_policy"] == {"specific": {"versions": versions}}
        assert [row["version"] for row in answers.index(host)] == versions
        assert [each["version"] for each in answers.statistics(host)["model_stats"]] == versions
        [other] = answers.statistics(host, "b" * 16)["model_stats"]
        assert other["version"] == "b" * 16
        host.batcher.close()

    run(test())


def test_what_no_version_executed_counts_with_the_one_that_it_was_told_to_serve() -> None:
    async def test() -> None:
        host = Host()
        two_versions(host)
        host.counters.refused, host.counters.expired, host.counters.evicted, host.counters.cancelled = 1, 2, 4, 3
        host.cache_hits = 5
        told, other = (each["inference_stats"] for each in answers.statistics(host)["model_stats"])
        assert (told["fail"], told["cancel"], told["cache_hit"]) == ({"count": 7}, {"count": 3}, {"count": 5})
        assert told["success"] == {"count": 5, "ns": 0}
        assert other["fail"] == {"count": 0}
        assert not {"cancel", "cache_hit"} & set(other)
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("why", ["loading", "unloaded"])
def test_while_nothing_is_resident_only_the_name_is_known(why: str) -> None:
    async def test() -> None:
        host = Host()
        host.ready, host.served = False, None
        host.unavailable = None if why == "loading" else "it was unloaded; load it"
        answers.check_model(host, "adder")
        for ask in (answers.versions, answers.metadata, answers.configuration, answers.statistics):
            with pytest.raises(NotReady, match="still loading" if why == "loading" else "it was unloaded"):
                ask(host)
        with pytest.raises(NotReady):
            answers.check_model(host, "adder", "1")
        with pytest.raises(UnknownModel, match="'other' is unknown; this deployment serves 'adder'"):
            answers.check_model(host, "other", "1")
        assert answers.model_ready(host, "adder", "1") is False
        [row] = answers.index(host)
        assert (row["state"], "version" in row, bool(row["reason"])) == ("UNAVAILABLE", False, True)
        assert answers.index(host, ready=True) == []
        host.batcher.close()

    run(test())


def test_a_replica_that_drains_still_tells_what_it_has() -> None:
    async def test() -> None:
        host = Host()
        row: dict[str, Any] = {"name": "adder", "version": host.variant.id}
        assert answers.index(host, ready=True) == answers.index(host) == [row | {"state": "READY", "reason": ""}]
        assert answers.model_ready(host, "adder", host.variant.id)
        host.ready = False
        assert answers.index(host) == [row | {"state": "UNAVAILABLE", "reason": "this replica is draining"}]
        assert answers.index(host, ready=True) == []
        assert not answers.model_ready(host, "adder")
        with pytest.raises(UnknownModel, match=f"version 'x' of 'adder' is unknown; served: {host.variant.id}"):
            answers.model_ready(host, "adder", "x")
        host.batcher.close()

    run(test())
