"""What is compared: the same question each way, tables of it, and (where h2load is installed) one real run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import grpc_vs_rest
from benchmarks.grpc_vs_rest import Run
from cluster.artifacts import ArtifactStore
from cluster.errors import SluiceError
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip
from tests.poison import poisonous_variant

PICTURE = np.arange(784, dtype=np.uint8).reshape(1, 1, 28, 28)


def test_the_ratio_is_taken_within_a_round() -> None:
    runs = [
        Run("a", 1, 0, 100.0, 1.0, 2.0), Run("b", 1, 0, 50.0, 2.0, 4.0),
        Run("a", 1, 1, 200.0, 3.0, 4.0), Run("b", 1, 1, 180.0, 4.0, 8.0),
        Run("a", 1, 2, 100.0, 5.0, 6.0), Run("b", 1, 2, 60.0, 6.0, 9.0),
    ]  # fmt: skip
    *_, a, b = grpc_vs_rest.table(runs).splitlines()
    assert a == "| 1 | a | 100 | 100 to 200 | 3.00 | 4.00 | 1.00 |"
    assert b == "| 1 | b | 60 | 50 to 180 | 4.00 | 8.00 | 0.60 |"


def test_each_way_sends_the_picture() -> None:
    _, _, raw, typed, streams = grpc_vs_rest.ways([1, 2], PICTURE)
    assert raw.body == streams.body
    for way in (raw, typed):
        assert int.from_bytes(way.body[1:5], "big") == len(way.body) - 5
        message = oip.ModelInferRequest.FromString(way.body[5:])
        sent = message.raw_input_contents[0] if way is raw else bytes(message.inputs[0].contents.uint_contents)
        assert sent == PICTURE.tobytes()
    assert {"-c16", "-m1"} < set(raw.arguments(16))
    assert {"-c1", "-m16"} < set(streams.arguments(16))


def test_a_summary_without_traffic_is_an_error() -> None:
    said = "traffic: 1.20MB (1258291) total, 1.00KB (1024) headers (space savings 90.00%), 1.10MB (1153434) data"
    assert grpc_vs_rest.content_bytes(said) == 1153434
    with pytest.raises(SluiceError, match="no traffic"):
        grpc_vs_rest.content_bytes("")


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed here (apt: nghttp2-client)")
def test_every_way_is_answered_alike_and_a_refusal_is_not_counted(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with grpc_vs_rest.serving(store.root, poisonous_variant(store).id, 0) as ports:
        compared = grpc_vs_rest.ways(ports, PICTURE)
        expected, _ = compared[0].ask()
        sizes = [grpc_vs_rest.check(way, expected) for way in compared]
        assert len(compared) == 7
        per_s, p50_ms, p99_ms = grpc_vs_rest.measure(compared[2], 2, 1, 0, sizes[2])
        assert per_s > 10
        assert 0 < p50_ms <= p99_ms
        wrong = grpc_vs_rest.ways(ports, PICTURE.astype(np.uint8)[:, :, :, :27])[2]
        with pytest.raises(SluiceError, match=r"an answer had 0\.0 bytes"):
            grpc_vs_rest.measure(wrong, 2, 1, 0, sizes[2])
