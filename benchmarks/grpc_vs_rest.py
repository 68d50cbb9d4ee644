"""What does gRPC cost beside REST? The same model, server, client and answers; only the wire differs.

    python -m benchmarks.grpc_vs_rest --store STORE --variant cnn_fashion_mnist/int8 --output docs/results/NAME.md

One server process on core 0 (benchmarks/grpc_vs_rest_server.py; with --haproxy a real cluster and Serve's HAProxy),
h2load on core 1 for all: N connections with one request each in flight, and for gRPC also one connection with N
streams, as gRPC's own clients have it. h2load does not read `grpc-status`: each way is asked by a client of its own
before and after, and of each run the bytes of its answers must be those of so many right ones, since a refusal over
gRPC has no content.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks import files
from benchmarks.grpc_vs_rest_server import MODEL
from benchmarks.serving.h2load import judge, program
from cluster.artifacts import ArtifactStore, default_store
from cluster.control.planner import plan_of
from cluster.control.serve_config import serve_config
from cluster.errors import SluiceError
from cluster.hardware import fingerprint
from cluster.local import LocalCluster, free_ports
from cluster.plans import Configuration
from cluster.runtimes import RuntimeConfig
from cluster.variants import Variant
from serve_apps.oip.codec import decode_response, encode_request
from serve_apps.oip.grpc_service import SERVICE
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip

Rows = NDArray[np.generic]
_REST = f"/v2/models/{MODEL}/infer"
_GRPC = f"/{SERVICE}/ModelInfer"
_WARMUP_S = 1


@dataclass(frozen=True)
class Way:
    """One way to ask for the same."""

    name: str
    port: int
    body: bytes
    headers: dict[str, str]
    ask: Callable[[], tuple[Rows, int]]
    """The answer as a client reads it, and how many bytes of content it has."""
    http2: bool
    streams: bool = False
    """All on one connection."""

    def arguments(self, in_flight: int) -> list[str]:
        """h2load's."""
        connections, streams = (1, in_flight) if self.streams else (in_flight, 1)
        path = _GRPC if self.http2 else _REST
        headers = [word for item in self.headers.items() for word in ("-H", ": ".join(item))]
        return [
            *([] if self.http2 else ["--h1"]), f"-c{connections}", f"-m{streams}", *headers,
            f"http://127.0.0.1:{self.port}{path}",
        ]  # fmt: skip


@dataclass(frozen=True)
class Run:
    way: str
    in_flight: int
    round: int
    per_s: float
    p50_ms: float
    p99_ms: float


def ways(ports: list[int], picture: Rows) -> list[Way]:
    """All that are compared; the first is what the others are compared with. `ports` of REST, of gRPC and, where it is
    served that way too, of grpc.aio."""

    def rest(name: str, *, binary: bool) -> Way:
        body, headers = encode_request({"image": picture}, binary=binary, binary_output=binary)

        def ask() -> tuple[Rows, int]:
            got = httpx.post(f"http://127.0.0.1:{ports[0]}{_REST}", content=body, headers=headers)
            got.raise_for_status()
            return next(iter(decode_response(got.content, got.headers).values())), len(got.content)

        return Way(name, ports[0], body, headers, ask, http2=False)

    def over_grpc(name: str, port: int, *, raw: bool, streams: bool = False) -> Way:
        message = oip.ModelInferRequest(model_name=MODEL)
        entry = message.inputs.add(name="image", datatype="UINT8", shape=picture.shape)
        if raw:
            message.raw_input_contents.append(picture.tobytes())
        else:
            entry.contents.uint_contents.extend(picture.ravel().tolist())
        content = message.SerializeToString()

        def ask() -> tuple[Rows, int]:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                got = channel.unary_unary(_GRPC)(content, timeout=10)
            answer = oip.ModelInferResponse.FromString(got)
            output = answer.outputs[0]
            values = np.frombuffer(answer.raw_output_contents[0], np.float32) if raw else np.array(
                output.contents.fp32_contents, np.float32
            )  # fmt: skip
            return values.reshape(tuple(output.shape)), len(got) + 5

        headers = {"content-type": "application/grpc", "te": "trailers"}
        framed = b"\0" + len(content).to_bytes(4, "big") + content
        return Way(name, port, framed, headers, ask, http2=True, streams=streams)

    compared = [
        rest("REST binary", binary=True),
        rest("REST JSON", binary=False),
        over_grpc("gRPC raw", ports[1], raw=True),
        over_grpc("gRPC typed", ports[1], raw=False),
        over_grpc("gRPC raw, one connection", ports[1], raw=True, streams=True),
    ]
    for port in ports[2:]:
        compared.append(over_grpc("gRPC raw, by grpc.aio", port, raw=True))
        compared.append(over_grpc("gRPC raw, by grpc.aio, one connection", port, raw=True, streams=True))
    return compared


def check(way: Way, expected: Rows) -> int:
    """The bytes of a right answer. Raises SluiceError for a wrong one."""
    got, size = way.ask()
    if got.shape != expected.shape or not np.allclose(got, expected, atol=1e-4):
        raise SluiceError(f"{way.name} answered {got!r}, and the first way {expected!r}")
    return size


def measure(way: Way, in_flight: int, seconds: int, core: int, size: int) -> tuple[float, float, float]:
    """(a second, p50 in ms, p99 in ms). Raises SluiceError if any answer was none."""
    with tempfile.TemporaryDirectory(prefix="sluice-h2load-") as folder:
        data, log = Path(folder, "body"), Path(folder, "log")
        data.write_bytes(way.body)
        command = [
            "taskset", "-c", str(core), program(), "-t1", f"-D{_WARMUP_S + seconds}", f"--data={data}",
            f"--log-file={log}", *way.arguments(in_flight),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + 10 * seconds)
        if done.returncode or not log.is_file():
            raise SluiceError(f"h2load ended with code {done.returncode}: {(done.stderr or done.stdout)[-400:]}")
        told = log.read_text()
        found = judge(told, 0.0, seconds, _WARMUP_S)
    if found.failed:
        raise SluiceError(f"{way.name}: {found.failed} of {found.answers} answers were none of 200")
    each = content_bytes(done.stdout) / told.count("\n")
    if abs(each / size - 1) > 0.02:
        raise SluiceError(f"{way.name}: an answer had {each:.1f} bytes on average, and a right one has {size}")
    return found.answers / seconds, found.p50_s * 1e3, found.p99_s * 1e3


def content_bytes(said: str) -> int:
    """Of all answers, as h2load says in its summary. Raises SluiceError if it does not."""
    match = re.search(r"\((\d+)\) data", said)
    if match is None:
        raise SluiceError(f"h2load told no traffic: {said[-400:]}")
    return int(match[1])


def table(runs: list[Run]) -> str:
    """Medians of the rounds; ratios are taken within a round."""
    first = runs[0].way
    lines = ["| in flight | way | inferences/s | lowest to highest | p50 ms | p99 ms | of REST binary |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for in_flight in dict.fromkeys(run.in_flight for run in runs):
        at = [run for run in runs if run.in_flight == in_flight]
        base = {run.round: run.per_s for run in at if run.way == first}
        for way in dict.fromkeys(run.way for run in at):
            these = [run for run in at if run.way == way]
            rates = [run.per_s for run in these]
            ratio = statistics.median(run.per_s / base[run.round] for run in these)
            lines.append(
                f"| {in_flight} | {way} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | "
                f"{statistics.median(run.p50_ms for run in these):.2f} | "
                f"{statistics.median(run.p99_ms for run in these):.2f} | {ratio:.2f} |"
            )
    return "\n".join(lines) + "\n"


@contextmanager
def serving(store: Path, variant: str, core: int) -> Iterator[list[int]]:
    """Its ports."""
    ports = free_ports(3)
    given = json.dumps({"store": str(store), "variant": variant, "ports": ports})
    server = subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.grpc_vs_rest_server", given],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        if server.stdout.readline().strip() != b"ready":
            raise SluiceError("the server ended before it was ready; its words are above")
        yield ports
    finally:
        server.stdin.close()
        server.wait(30)


@contextmanager
def deployed(store: ArtifactStore, variant: Variant, core: int) -> Iterator[list[int]]:
    """The same as `sluice serve --grpc-port` has it: its ports."""
    plan = plan_of(
        Configuration(
            variant_id=variant.id, variant_name=variant.name, runtime=RuntimeConfig(name="onnxruntime"),
            max_batch_size=64, max_queued_requests=1024, num_replicas=1,
        ),
        model_name=MODEL, store=store.root, made_by="benchmarks.grpc_vs_rest",
    )  # fmt: skip
    with LocalCluster(f"grpc-vs-rest-{os.getpid()}", cpus=[core]) as cluster:
        (port,) = free_ports(1)
        cluster.deploy(serve_config(plan, http_host="127.0.0.1", http_port=cluster.http_port, grpc_port=port))
        yield [cluster.http_port, port]


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpc_vs_rest", description=__doc__)
    parser.add_argument("--store", type=Path, default=default_store().root)
    parser.add_argument("--variant", default="cnn_fashion_mnist/int8")
    parser.add_argument("--in-flight", default="1,16,64")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", default="0,1", help="the server's, the client's")
    parser.add_argument("--haproxy", action="store_true", help="a real cluster in place of one process")
    parser.add_argument("--output", type=Path, help="a .md; the runs go beside it as .json")
    given = parser.parse_args()
    server_core, client_core = map(int, given.cores.split(","))
    store = ArtifactStore(given.store)
    variant = store.get(given.variant)
    shape = tuple(variant.inputs[0].shape)[1:]
    picture = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
    runs: list[Run] = []
    served = deployed(store, variant, server_core) if given.haproxy else serving(store.root, variant.id, server_core)
    with served as ports:
        compared = ways(ports, picture)
        expected, _ = compared[0].ask()
        sizes = [check(way, expected) for way in compared]
        for number in range(given.rounds):
            for in_flight in map(int, given.in_flight.split(",")):
                for way, size in zip(compared, sizes, strict=True):
                    if way.streams and in_flight == 1:
                        continue  # the same as one connection with one
                    runs.append(
                        Run(way.name, in_flight, number,
                            *measure(way, in_flight, given.seconds, client_core, size))
                    )  # fmt: skip
                    print(runs[-1], file=sys.stderr, flush=True)
        for way in compared:
            check(way, expected)
    print(table(runs))
    if given.output is not None:
        command = "python -m benchmarks.grpc_vs_rest " + " ".join(sys.argv[1:])
        record = {"command": command, "variant": variant.name, "id": variant.id, "machine": fingerprint(),
                  "runs": [asdict(run) for run in runs]}  # fmt: skip
        files.write(given.output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        files.write(given.output, table(runs))


if __name__ == "__main__":
    main()
