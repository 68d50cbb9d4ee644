"""The short way and the long way give one answer; what was seen before is answered as what was not."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster.scheduling import Scheduling
from cluster.variants import TensorSpec
from serve_apps.decoder import Decoder
from serve_apps.front.head import Head
from serve_apps.oip.codec import HEADER_LENGTH, encode_request
from serve_apps.oip.exchange import Exchange
from tests.unit.serve_apps.gated_model import GatedModel, run, until
from tests.unit.serve_apps.oip.served import Host, ask, infer, variant

INFER = b"/v2/models/adder/infer"
RAW = {b"content-type": b"application/octet-stream"}
BACK = {b"accept": b"application/octet-stream"}


def head_of(body: bytes, headers: dict[bytes, bytes] | None = None, target: bytes = INFER) -> Head:
    return Head(target, headers or {}, len(body))


def binary(rows: Any, **options: Any) -> tuple[bytes, dict[bytes, bytes]]:
    body, headers = encode_request({"x": np.array(rows, np.int32)}, binary=True, **options)
    return body, {name.encode(): value.encode() for name, value in headers.items()}


async def answered(exchange: Exchange, head: Head, body: bytes) -> tuple[int, bytes, bytes]:
    assert exchange.takes(head)
    return await exchange.answer(head, body)


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=3), st.booleans())
def test_a_request_like_one_before_is_answered_as_the_first(rows: list[list[int]], binary_output: bool) -> None:
    async def test() -> None:
        seen, fresh = Host(), Host()
        known, new = Exchange(lambda: seen), Exchange(lambda: fresh)
        body, headers = binary(np.full_like(rows, 7), binary_output=binary_output)
        await answered(known, head_of(body, headers), body)
        body, headers = binary(rows, binary_output=binary_output)
        again = [await answered(known, head_of(body, headers), body) for _ in range(2)]
        assert again == [await answered(new, head_of(body, headers), body)] * 2
        assert len(known._host().served.templates(known._memo(head_of(body), seen.served).wishes)._known) == 1  # type: ignore[union-attr, arg-type]
        for host in (seen, fresh):
            host.batcher.close()

    run(test())


def test_raw_rows_are_answered_in_json_or_as_raw_as_they_came() -> None:
    async def test() -> None:
        outputs = (TensorSpec(name="twice", datatype="FP32", shape=(-1, 3)),)
        host = Host(lambda x: {"twice": (x["x"] * 2).astype(np.float32)})
        host.serve(variant(outputs=outputs), lambda x: {"twice": (x["x"] * 2).astype(np.float32)})
        exchange = Exchange(lambda: host)
        body = np.array([[1, 2, 3], [4, 5, 6]], np.int32).tobytes()
        status, lines, text = await answered(exchange, head_of(body, RAW), body)
        assert status == 200
        assert b'"shape":[2,3],"data":[2.0,4.0,6.0,8.0,10.0,12.0]' in text
        status, lines, raw = await answered(exchange, head_of(body, RAW | BACK), body)
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32), [2, 4, 6, 8, 10, 12])
        assert b"sluice-variant: sum/1\r\n" in lines
        assert b"sluice-version: %s\r\n" % host.variant.id.encode() in lines
        status, lines, text = await answered(exchange, head_of(body[:-1], RAW), body[:-1])
        assert (status, b"12 bytes a row" in text) == (400, True)
        host.batcher.close()

    run(test())


def test_raw_rows_are_not_for_models_of_several_inputs() -> None:
    async def test() -> None:
        host = Host()
        host.serve(variant(inputs=tuple(TensorSpec(name=n, datatype="UINT8", shape=(-1,)) for n in "ab")))
        status, _, text = await answered(Exchange(lambda: host), head_of(b"ab", RAW), b"ab")
        assert (status, b"takes 2 inputs (a, b)" in text) == (400, True)
        host.batcher.close()

    run(test())


def test_raw_bytes_come_back_only_where_they_say_enough() -> None:
    async def test() -> None:
        host = Host()  # two outputs
        exchange, body = Exchange(lambda: host), np.array([[1, 2, 3]], np.int32).tobytes()
        status, lines, text = await answered(exchange, head_of(body, RAW | BACK), body)
        assert (status, b"application/json" in lines) == (200, True)
        assert b'"data":[6]' in text
        half = (TensorSpec(name="h", datatype="FP16", shape=(-1, 3)),)
        host.serve(variant("half\r\nx: y", outputs=half), lambda x: {"h": x["x"].astype(np.float16)})
        status, _, text = await answered(exchange, head_of(body, RAW), body)
        assert (status, b'"datatype":"FP16","shape":[1,3],"data":[1.0,2.0,3.0]' in text) == (200, True)
        status, lines, raw = await answered(exchange, head_of(body, RAW | BACK), body)
        np.testing.assert_array_equal(np.frombuffer(raw, np.float16), [1, 2, 3])
        assert b"sluice-variant: half??x:?y\r\n" in lines, "a name ends no header line"
        host.batcher.close()

    run(test())


def pictured(**options: Any) -> tuple[Host, bytes]:
    """A host whose model sums the pixels of a picture, and such a picture as a PNG: their sum is 72."""

    def total(inputs: Any) -> Any:
        return {"sum": inputs["image"].sum(axis=(1, 2, 3), dtype=np.int64)}

    host = Host(total, **options)
    spec = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 4, 6))
    host.serve(variant(inputs=(spec,), outputs=(TensorSpec(name="sum", datatype="INT64", shape=(-1,)),)), total)
    host.decoder = Decoder()
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6), 3, np.uint8)).save(file, "PNG")
    return host, file.getvalue()


@pytest.mark.parametrize("late", ["503", "408"])
def test_a_picture_that_was_decoded_for_too_long_is_a_408_as_any_other(late: str) -> None:
    async def test() -> None:
        host, body = pictured(scheduling=Scheduling.model_validate({"late": late}))
        headers = {b"content-type": b"image/png", b"sluice-timeout": b"1"}
        status, lines, text = await answered(Exchange(lambda: host), head_of(body, headers), body)
        assert (status, b"while the picture was decoded" in text) == (408, True)
        assert (b"retry-after: 1\r\n" in lines) == (late == "503")
        assert host.decoder is not None
        host.decoder.close()
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("broken", [False, True])
def test_a_picture_is_decoded_and_answered(broken: bool) -> None:
    async def test() -> None:
        host, body = pictured()
        body = body[: 40 if broken else None]
        kind = {b"content-type": b"image/png"}
        exchange = Exchange(lambda: host)
        status, _, text = await answered(exchange, head_of(body, kind), body)
        if broken:
            assert status == 400
        else:
            assert (status, b'"data":[72]' in text) == (200, True)
        left = exchange.begin(head_of(body, kind), body, lambda *_: pytest.fail("its client left"))
        assert left is not None
        left.cancel()
        await until(lambda: host.decoder is not None and host.decoder.waiting == 0)
        host.decoder.close()
        host.batcher.close()

    run(test())


def test_what_it_does_not_take_is_left_to_the_long_way() -> None:
    async def test() -> None:
        host = Host()
        exchange = Exchange(lambda: host, max_body_bytes=5 << 20)
        json = 4 << 20
        assert exchange.takes(Head(INFER, {}, json))
        assert not exchange.takes(Head(INFER, {}, json + 1)), "JSON that would hold the loop"
        assert exchange.takes(Head(INFER, RAW, 5 << 20))
        assert not exchange.takes(Head(INFER, RAW, (5 << 20) + 1))
        assert not exchange.takes(Head(b"/v2/models/other/infer", {}, 1))
        assert not exchange.takes(Head(INFER, {b"sluice-priority": b"urgent"}, 1))
        host.served = None
        assert not exchange.takes(Head(INFER, {}, 1))
        host.batcher.close()

    run(test())


def test_wishes_in_headers_reach_the_batcher() -> None:
    async def test() -> None:
        gate = GatedModel()

        def model(inputs: Any) -> Any:
            gate(inputs)
            return infer(inputs)

        host = Host(model, max_batch_size=1)
        exchange = Exchange(lambda: host)
        order: list[bytes] = []

        async def one(name: bytes, headers: dict[bytes, bytes]) -> None:
            body, own = binary([[1, 2, 3]])
            await answered(exchange, head_of(body, own | headers), body)
            order.append(name)

        first = asyncio.create_task(one(b"first", {}))
        await until(lambda: gate.waiting)
        rest = [asyncio.create_task(one(b"low", {b"sluice-priority": b"3"}))]
        await until(lambda: host.batcher.queued == 1)
        rest.append(asyncio.create_task(one(b"high", {b"sluice-priority": b"1"})))
        await until(lambda: host.batcher.queued == 2)
        gate.stay_open()
        await asyncio.gather(first, *rest)
        assert order == [b"first", b"high", b"low"]
        host.batcher.close()

    run(test())


def test_after_a_switch_the_next_answer_is_of_the_new_model_though_its_head_was_seen_before() -> None:
    async def test() -> None:
        host = Host()
        exchange = Exchange(lambda: host)
        body, headers = binary([[1, 2, 3]])
        head = head_of(body, headers)
        old = host.variant.id.encode()
        assert old in (await answered(exchange, head, body))[1]
        host.serve(variant("sum/2", preprocessing="none"))
        new = host.variant.id.encode()
        _, lines, text = await answered(exchange, head, body)
        assert new != old
        assert new in lines
        assert new in text
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/octet-stream"}])
def test_the_asgi_application_answers_as_the_front_does(headers: dict[str, str]) -> None:
    async def test() -> None:
        from serve_apps.oip.routes import OipApp

        host = Host()
        app = OipApp(lambda: host)
        if headers:
            body, more = np.array([[1, 2, 3]], np.int32).tobytes(), headers
        else:
            body, more = encode_request({"x": np.array([[1, 2, 3]], np.int32)}, binary=True, binary_output=True)
        long = await ask(app, "POST", INFER.decode(), body, more)
        said = {name.encode(): value.encode() for name, value in more.items()}
        status, lines, text = await answered(app.exchange, head_of(body, said), body)
        assert (long.status, long.body) == (status, text)
        told = dict(line.split(": ", 1) for line in lines.decode().split("\r\n")[:-1])
        assert long.headers == told
        assert (HEADER_LENGTH in told) == (not headers)
        host.batcher.close()

    run(test())
