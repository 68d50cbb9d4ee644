"""gRPC through a real HAProxy, by gRPC's own client: every method, refusals, deadlines, cancellation, packed messages,
and a rolling update in which no call fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

from cluster.artifacts import ArtifactStore
from cluster.control.serve_config import serve_config
from cluster.local import LocalCluster, free_ports
from cluster.plans import Plan
from serve_apps.oip.grpc_service import SERVICE
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip
from serve_apps.oip.proto import triton_extensions_pb2 as triton
from tests.conftest import plan_of
from tests.poison import poisonous_variant

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

Code = grpc.StatusCode
DRAINING_S = 3


@dataclass
class Deployed:
    cluster: LocalCluster
    plan: Plan
    port: int

    def deploy(self, plan: Plan) -> None:
        self.cluster.deploy(
            serve_config(plan, http_host="127.0.0.1", http_port=self.cluster.http_port, grpc_port=self.port)
        )


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    plan = plan_of(store, poisonous_variant(store), num_replicas=2, num_cpus_per_replica=0.5)
    (port,) = free_ports(1)
    with LocalCluster(
        "grpc", state_dir=tmp_path_factory.mktemp("state"),
        environment={"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_S)},
    ) as cluster:  # fmt: skip
        made = Deployed(cluster, plan, port)
        made.deploy(plan)
        yield made


@pytest.fixture
def channel(deployed: Deployed) -> Iterator[grpc.Channel]:
    """As anybody has it: an address, and nothing else."""
    with grpc.insecure_channel(f"127.0.0.1:{deployed.port}") as made:
        yield made


def call(channel: grpc.Channel, method: str, message: object, answer: type, **options: object) -> object:
    ask = channel.unary_unary(
        f"/{SERVICE}/{method}", request_serializer=type(message).SerializeToString,  # type: ignore[attr-defined]
        response_deserializer=answer.FromString,  # type: ignore[attr-defined]
    )  # fmt: skip
    return ask(message, **({"timeout": 20} | options))


def picture(value: int, *, rows: int = 1, **fields: object) -> object:
    made = oip.ModelInferRequest(
        model_name="classifier", raw_input_contents=[bytes((value,)) * 784 * rows], **fields
    )
    made.inputs.add(name="image", datatype="UINT8", shape=[rows, 1, 28, 28])
    return made


def values(channel: grpc.Channel, message: object, **options: object) -> list[float]:
    answer = call(channel, "ModelInfer", message, oip.ModelInferResponse, **options)
    rows = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, 10)  # type: ignore[attr-defined]
    assert (rows == rows[:, :1]).all()
    return rows[:, 0].tolist()  # type: ignore[no-any-return]


def refusal(channel: grpc.Channel, message: object, **options: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", message, oip.ModelInferResponse, **options)
    return caught.value


def test_all_methods(deployed: Deployed, channel: grpc.Channel) -> None:
    version = deployed.plan.variant_id
    asked: list[tuple[str, object, type]] = [
        ("ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse),
        ("ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse),
        ("ModelReady", oip.ModelReadyRequest(name="classifier", version=version), oip.ModelReadyResponse),
    ]
    for method, message, answer in asked:
        (value,) = [value for _, value in call(channel, method, message, answer).ListFields()]  # type: ignore[attr-defined]
        assert value is True
    assert call(channel, "ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse).name == "sluice"  # type: ignore[attr-defined]
    model = call(channel, "ModelMetadata", oip.ModelMetadataRequest(name="classifier"), oip.ModelMetadataResponse)
    assert list(model.versions) == [version]  # type: ignore[attr-defined]
    config = call(channel, "ModelConfig", triton.ModelConfigRequest(name="classifier"), triton.ModelConfigResponse)
    assert config.config.backend == "onnxruntime"  # type: ignore[attr-defined]
    assert values(channel, picture(7)) == [7.0]
    assert values(channel, picture(9, rows=300, model_version=version)) == [9.0] * 300
    assert values(channel, picture(5, rows=50), compression=grpc.Compression.Gzip) == [5.0] * 50


def test_refusals(channel: grpc.Channel) -> None:
    wrong = picture(1)
    wrong.model_name = "nobody"  # type: ignore[attr-defined]
    error = refusal(channel, wrong)
    assert (error.code(), "nobody" in error.details()) == (Code.NOT_FOUND, True)
    wrong = picture(1)
    wrong.inputs[0].shape[:] = [1, 28, 28]  # type: ignore[attr-defined]
    error = refusal(channel, wrong)
    assert (error.code(), "shape" in error.details()) == (Code.INVALID_ARGUMENT, True)
    assert refusal(channel, picture(0, rows=30_000)).code() == Code.RESOURCE_EXHAUSTED  # 24 MB
    assert refusal(channel, picture(0, rows=5000), timeout=1e-5).code() == Code.DEADLINE_EXCEEDED
    late = picture(0)
    late.parameters["timeout"].int64_param = 1  # type: ignore[attr-defined]
    error = refusal(channel, late)
    assert error.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
    if error.code() == Code.UNAVAILABLE:
        assert int(dict(error.trailing_metadata())["retry-after"]) >= 1
    assert values(channel, picture(3)) == [3.0]


def test_a_cancelled_call_is_forgotten(channel: grpc.Channel) -> None:
    ask = channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=oip.ModelInferRequest.SerializeToString)
    calls = [ask.future(picture(1, rows=2000), timeout=30) for _ in range(20)]
    for each in calls:
        each.cancel()
    assert {each.code() for each in calls} <= {Code.CANCELLED, Code.OK}
    assert values(channel, picture(4)) == [4.0]


class Asking(threading.Thread):
    """One call after the other on one connection, each with the one answer that is right."""

    def __init__(self, port: int, rows: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._rows = rows
        self.ended = threading.Event()
        self.right = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            while not self.ended.is_set():
                value = self.right % 200
                try:
                    got = values(channel, picture(value, rows=self._rows))
                except grpc.RpcError as error:
                    self.wrong.append(f"{error.code()}: {error.details()}")
                else:
                    self.wrong += [] if got == [float(value)] * self._rows else [f"{got[:9]} for {value}"]
                self.right += 1
                time.sleep(0.003)


def test_a_rolling_update_fails_no_call(deployed: Deployed) -> None:
    """Not while Serve builds the application anew, with its own proxy behind HAProxy, and not while replicas change;
    nor do large ones, which Serve would not hand on in messages of its usual size."""
    threads = [Asking(deployed.port, rows) for rows in (1, 1, 1, 6000)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)
        deployed.deploy(deployed.plan.model_copy(update={"executors": 2}))
        time.sleep(DRAINING_S + 4.0)
    finally:
        for thread in threads:
            thread.ended.set()
            thread.join()
    assert [wrong for thread in threads for wrong in thread.wrong] == []
    assert sum(thread.right for thread in threads) > 1000
