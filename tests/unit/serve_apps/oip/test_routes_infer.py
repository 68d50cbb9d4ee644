"""An inference at the ASGI boundary: bodies, refusals, cancellations, and the variant that changes meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import numpy as np
import orjson
import pytest

from cluster.variants import SequenceSpec, TensorSpec
from serve_apps.oip import exchange
from serve_apps.oip.codec import HEADER_LENGTH, MAX_JSON_BYTES, decode_response, encode_request
from serve_apps.oip.routes import OipApp
from serve_apps.sequences import SequenceBuckets
from tests.unit.serve_apps.gated_model import GatedModel, run, until
from tests.unit.serve_apps.oip.served import Host, ask, infer, variant

INFER = "/v2/models/adder/infer"
ONE = {"x": np.array([[1, 2, 3]], np.int32)}
BODY, _ = encode_request(ONE, binary=False, id="r1")


def routed(host: Host, **options: Any) -> OipApp:
    return OipApp(lambda: host, **options)


def test_binary_in_and_out() -> None:
    async def test() -> None:
        host = Host()
        body, headers = encode_request(ONE, binary=True, binary_output=True)
        answer = await ask(routed(host), "POST", INFER, body, headers)
        assert answer.headers["content-type"] == "application/octet-stream"
        tensors = decode_response(answer.body, answer.headers)
        assert tensors["total"].tolist() == [6]
        assert tensors["twice"].tolist() == [[2, 4, 6]]
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("kind", [{}, dict.fromkeys(("content-type", "accept"), "application/octet-stream")])
def test_a_length_of_0_is_triton_s_raw_request(kind: dict[str, str]) -> None:
    async def test() -> None:
        host = Host()
        app = routed(host)
        rows = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
        for count in (1, 2):  # one row goes a shorter way
            answer = await ask(app, "POST", INFER, rows[:count].tobytes(), kind | {HEADER_LENGTH: "0"})
            assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
            head = orjson.loads(answer.body[: int(answer.headers[HEADER_LENGTH])])
            assert [output["parameters"] for output in head["outputs"]] == [
                {"binary_data_size": 8 * count}, {"binary_data_size": 12 * count},
            ]  # fmt: skip
            tensors = decode_response(answer.body, answer.headers)
            assert tensors["total"].tolist() == [6, 15][:count]
            assert tensors["twice"].tolist() == [[2, 4, 6], [8, 10, 12]][:count]
        answer = await ask(app, "POST", INFER, BODY, kind | {HEADER_LENGTH: "0"})
        assert (answer.status, "12 bytes a row" in answer.error) == (400, True)
        host.serve(variant(inputs=tuple(TensorSpec(name=n, datatype="UINT8", shape=(-1,)) for n in "ab")))
        answer = await ask(app, "POST", INFER, b"ab", {HEADER_LENGTH: "0"})
        assert (answer.status, "takes 2 inputs (a, b)" in answer.error) == (400, True)
        host.batcher.close()

    run(test())


def test_a_raw_request_of_a_series_is_padded_as_any_other() -> None:
    async def test() -> None:
        def count(inputs: Any) -> Any:
            assert inputs["x"].shape == (1, 4, 2), "the bucket of three rows"
            return {"rows": (~np.isnan(inputs["x"])).all(2).sum(1)}

        series = TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 2))
        host = Host(count)
        host.serve(variant(inputs=(series,), outputs=(TensorSpec(name="rows", datatype="INT64", shape=(-1,)),)), count)
        assert host.served is not None
        host.served.buckets = SequenceBuckets("x", SequenceSpec(multiple_of=1, shortest=1, longest=8))
        for length in ({HEADER_LENGTH: "0"}, {"content-type": "application/octet-stream"}):
            answer = await ask(routed(host), "POST", INFER, np.ones((3, 2), np.float32).tobytes(), length)
            assert answer.status == 200
            assert decode_response(answer.body, answer.headers)["rows"].tolist() == [3]
        host.batcher.close()

    run(test())


@pytest.mark.parametrize(
    ("inputs", "status", "complaint"),
    [
        ({"y": ONE["x"]}, 400, "input ['x'] is missing"),
        ({**ONE, "y": ONE["x"]}, 400, "input ['y'] is unknown"),
        ({"x": np.zeros((1, 3), np.int64)}, 400, "datatype INT64; the model takes INT32"),
        ({"x": np.zeros((1, 4), np.int32)}, 400, "shape [1, 4]"),
        ({"x": np.zeros((0, 3), np.int32)}, 400, "shape [0, 3]"),
        ({"x": np.full((1, 3), -1, np.int32)}, 500, "this one cannot be done"),
        ({"x": np.full((1, 3), -2, np.int32)}, 500, "output 'twice' holds NaN"),
    ],
)
def test_a_request_that_the_model_cannot_take(inputs: Any, status: int, complaint: str) -> None:
    async def test() -> None:
        host = Host()
        body, headers = encode_request(inputs, binary=False)
        answer = await ask(routed(host), "POST", INFER, body, headers)
        assert answer.status == status
        assert complaint in answer.error
        host.batcher.close()

    run(test())


def test_inputs_of_different_rows_are_refused() -> None:
    async def test() -> None:
        host = Host()
        host.serve(variant(inputs=tuple(TensorSpec(name=n, datatype="UINT8", shape=(-1,)) for n in "ab")))
        body, headers = encode_request({"a": np.zeros(2, np.uint8), "b": np.zeros(3, np.uint8)}, binary=True)
        answer = await ask(routed(host), "POST", INFER, body, headers)
        assert answer.status == 400
        assert "batch sizes [2, 3]" in answer.error
        host.batcher.close()

    run(test())


def test_an_unexpected_error_is_a_500_that_tells_nothing_and_a_log_that_tells_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        host = Host()
        host.put = lambda request: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        answer = await ask(routed(host), "POST", INFER, BODY)
        assert answer.status == 500
        assert "internal error" in answer.error
        host.batcher.close()

    exchange._log.propagate = True  # Serve, once imported, turns it off
    run(test())
    assert "ZeroDivisionError" in caplog.text


def test_too_large_is_413_before_it_is_read() -> None:
    async def test() -> None:
        host = Host()
        app = routed(host, max_body_bytes=1 << 23)
        unread: list[Any] = [b"", b""]
        for length, headers in ((MAX_JSON_BYTES + 1, {}), ((1 << 23) + 1, {HEADER_LENGTH: "9"}), (10**40, {})):
            answer = await ask(app, "POST", INFER, unread, headers | {"content-length": str(length)})
            assert answer.status == 413
            assert "at most" in answer.error
        # No length told: counted as it comes, whole or in chunks.
        blank = b" " * (MAX_JSON_BYTES + 1)
        for body in (blank, [b" " * (1 << 20)] * 5):
            answer = await ask(app, "POST", INFER, body)
            assert answer.status == 413
            assert "binary data" in answer.error
        answer = await ask(app, "POST", INFER, [blank, blank], {HEADER_LENGTH: "9"})
        assert answer.status == 413
        assert "fewer rows" in answer.error
        host.batcher.close()

    run(test())


def test_an_endless_body_is_not_read_to_its_end() -> None:
    async def test() -> None:
        host = Host()
        sent: list[Any] = []
        chunks = 0

        async def receive() -> Any:
            nonlocal chunks
            chunks += 1
            return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode(), "headers": []}
        await routed(host)(scope, receive, send)
        assert sent[0]["status"] == 413
        assert chunks <= 6
        host.batcher.close()

    run(test())


def test_a_body_in_chunks_is_joined() -> None:
    async def test() -> None:
        host = Host()
        answer = await ask(routed(host), "POST", INFER, [BODY[:7], b"", BODY[7:40], BODY[40:]])
        assert answer.json()["outputs"][0]["data"] == [6]
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("first", [[], [{"type": "http.request", "body": BODY[:9], "more_body": True}]])
def test_a_body_cut_short_is_not_answered(first: list[Any]) -> None:
    async def test() -> None:
        host = Host()
        messages = [*first, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError(f"there is nobody to send {message} to")

        scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode(), "headers": []}
        await routed(host)(scope, receive, send)
        assert host.batcher.counters.batches == 0
        host.batcher.close()

    run(test())


def test_a_compressed_body_is_unpacked_within_the_bounds_of_a_plain_one() -> None:
    async def test() -> None:
        host = Host()
        app = OipApp(lambda: host, max_body_bytes=3000)
        plain = await ask(app, "POST", INFER, BODY)
        for encoding, packed in (("identity", BODY), ("gzip", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))):
            assert (await ask(app, "POST", INFER, packed, {"content-encoding": encoding})).body == plain.body
        unknown = await ask(app, "POST", INFER, BODY, {"content-encoding": "br"})
        assert (unknown.status, "br" in unknown.error) == (400, True)
        bomb = await ask(app, "POST", INFER, gzip.compress(b" " * 3000 + BODY), {"content-encoding": "gzip"})
        assert bomb.status == 413
        host.batcher.close()

    run(test())


def test_an_answer_is_packed_for_who_asks_if_it_is_worth_it() -> None:
    async def test() -> None:
        host = Host()
        app, asked = OipApp(lambda: host), {"accept-encoding": "gzip"}
        small = await ask(app, "POST", INFER, BODY, asked)
        assert ("content-encoding" in small.headers, small.headers["vary"]) == (False, "accept-encoding")
        body, headers = encode_request({"x": np.ones((400, 3), np.int32)}, binary=False)
        plain = await ask(app, "POST", INFER, body, headers)
        packed = await ask(app, "POST", INFER, body, headers | asked)
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) / 4
        host.batcher.close()

    run(test())


class Stuck:
    """A host whose executor is busy until it is told otherwise."""

    def __init__(self, **options: Any) -> None:
        self.gate = GatedModel()

        def model(inputs: Any) -> Any:
            self.gate(inputs)
            return infer(inputs)

        self.host = Host(model, **options)
        self.app = routed(self.host)
        self.first = asyncio.ensure_future(ask(self.app, "POST", INFER, BODY))

    async def busy(self) -> None:
        await until(lambda: self.gate.waiting)


def test_a_full_queue_is_503_with_retry_after_and_a_timeout_is_408() -> None:
    async def test() -> None:
        stuck = Stuck(max_queued_requests=1)
        await stuck.busy()
        body, headers = encode_request(ONE, binary=False, parameters={"timeout": 10_000})
        late = asyncio.ensure_future(ask(stuck.app, "POST", INFER, body, headers))
        await until(lambda: stuck.host.batcher.queued == 1)
        refused = await ask(stuck.app, "POST", INFER, BODY)
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "max_queued_requests=1" in refused.error
        timed_out = await late
        assert timed_out.status == 408
        assert int(timed_out.headers["retry-after"]) >= 1, "as `late: 503` has it"
        assert "timeout" in timed_out.error
        stuck.gate.stay_open()
        assert (await stuck.first).status == 200
        await stuck.host.batcher.drain(30)
        draining = await ask(stuck.app, "POST", INFER, BODY)
        assert draining.status == 503
        assert int(draining.headers["retry-after"]) >= 1
        stuck.host.batcher.close()

    run(test())


@pytest.mark.parametrize("executing", [False, True])
def test_a_cancelled_task_drops_its_work(executing: bool) -> None:
    """Serve's replica cancels the task of a client that left."""

    async def test() -> None:
        stuck = Stuck()
        await stuck.busy()
        body, _ = encode_request({"x": np.full((1, 3), 9, np.int32)}, binary=False)
        second = asyncio.ensure_future(ask(stuck.app, "POST", INFER, body))
        await until(lambda: stuck.host.batcher.queued == 1)
        task = stuck.first if executing else second
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        stuck.gate.stay_open()
        other = second if executing else stuck.first
        assert (await other).status == 200
        await stuck.host.batcher.drain(30)
        assert stuck.host.batcher.counters.cancelled == 1
        assert stuck.gate.calls == ([[1], [9]] if executing else [[1]])
        stuck.host.batcher.close()

    run(test())


def test_the_version_in_an_answer_is_of_the_variant_that_made_it() -> None:
    """`user_config` may switch the variant while a request waits, or while its body is on the way."""

    async def test() -> None:
        stuck = Stuck()
        await stuck.busy()
        old = stuck.host.variant
        waiting = asyncio.ensure_future(ask(stuck.app, "POST", INFER, BODY))
        await until(lambda: stuck.host.batcher.queued == 1)

        slow_body: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answers: dict[str, list[Any]] = {INFER: [], f"/v2/models/adder/versions/{old.id}/infer": []}

        async def ask_slowly(path: str, sent: list[Any]) -> None:
            async def receive() -> Any:
                return await asyncio.shield(slow_body)

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": []}
            await stuck.app(scope, receive, send)

        slow = [asyncio.ensure_future(ask_slowly(path, sent)) for path, sent in answers.items()]
        await asyncio.sleep(0)
        stuck.host.serve(
            variant("sum/2", preprocessing="none"), lambda x: {**infer(x), "total": x["x"][:, 0].astype("i8")}
        )
        slow_body.set_result({"type": "http.request", "body": BODY})
        await until(lambda: stuck.host.batcher.queued == 2)
        stuck.gate.stay_open()
        await asyncio.gather(*slow)

        before = (await waiting).json()
        assert (before["model_version"], before["outputs"][0]["data"]) == (old.id, [6])
        plain, versioned = answers.values()
        after = orjson.loads(plain[1]["body"])
        assert (after["model_version"], after["outputs"][0]["data"]) == (stuck.host.variant.id, [1])
        assert versioned[0]["status"] == 404
        assert (await ask(stuck.app, "GET", "/v2/models/adder")).json()["versions"] == [stuck.host.variant.id]
        assert (await ask(stuck.app, "GET", f"/v2/models/adder/versions/{old.id}")).status == 404
        stuck.host.batcher.close()

    run(test())


def test_an_output_that_json_has_no_numbers_for_travels_as_binary() -> None:
    async def test() -> None:
        host = Host()
        body, headers = encode_request({"x": np.full((1, 3), -2, np.int32)}, binary=False, binary_output=True)
        answer = await ask(routed(host), "POST", INFER, body, headers)
        assert np.isnan(decode_response(answer.body, answer.headers)["twice"]).all()
        host.batcher.close()

    run(test())
