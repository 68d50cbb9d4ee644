from __future__ import annotations

import asyncio
from itertools import pairwise
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.load.http1 import BAD_RESPONSE, RESET, Connection, build_request, decode_chunked, parse_head


class Recorder:
    def __init__(self) -> None:
        self.outcomes: list[tuple[int, int, bytes, bool]] = []
        self.losses = 0

    def answered(self, connection: Connection, index: int, outcome: int, response: bytes) -> None:
        self.outcomes.append((index, outcome, response, connection.open))

    def lost(self, connection: Connection) -> None:
        self.losses += 1


def connected() -> tuple[Connection, Recorder, Mock]:
    recorder, transport = Recorder(), Mock(spec=asyncio.WriteTransport)
    connection = Connection(recorder)
    connection.connection_made(transport)
    return connection, recorder, transport


def test_build_request_writes_the_length_and_the_body() -> None:
    request = build_request("POST", "/x", "h:1", {"A": "b"}, b"body")
    assert request == b"POST /x HTTP/1.1\r\nHost: h:1\r\nA: b\r\nContent-Length: 4\r\n\r\nbody"
    assert build_request("GET", "/", "h") == b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def test_build_request_refuses_header_injection() -> None:
    with pytest.raises(ValueError, match="line break"):
        build_request("GET", "/", "h", {"A": "b\r\nEvil: 1"})


def test_parse_head_reads_what_decides_the_end() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 7\r\n\r\n") == (200, 7, False, False)
    assert parse_head(b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nConnection: Close\r\n\r\n") == (
        200,
        None,
        True,
        True,
    )
    assert parse_head(b"HTTP/1.0 200 OK\r\n\r\n").close
    assert parse_head(b"HTTP/1.1 204 No Content\r\n\r\n").length == 0


@pytest.mark.parametrize(
    "head", [b"HTTP/2 200 OK\r\n\r\n", b"junk\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
def test_parse_head_refuses_what_is_not_http(head: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_head(head)


ANSWERS = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello": True,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello": True,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\nT: 1\r\n\r\n": True,
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello": False,
}


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(1, 120), max_size=6))
def test_an_answer_is_the_same_however_it_is_cut_into_packets(answer: bytes, cuts: list[int]) -> None:
    connection, recorder, _ = connected()
    connection.send(3, b"request")
    places = [0, *sorted({cut for cut in cuts if cut < len(answer)}), len(answer)]
    for start, stop in pairwise(places):
        assert not recorder.outcomes
        connection.data_received(answer[start:stop])
    [(index, outcome, response, open_after)] = recorder.outcomes
    assert (index, outcome, open_after) == (3, 200, ANSWERS[answer])
    assert response.endswith(b"\r\n\r\nhello")
    assert connection.index == -1


def test_a_close_in_mid_answer_is_a_reset() -> None:
    connection, recorder, _ = connected()
    connection.send(0, b"request")
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhel")
    connection.connection_lost(None)
    assert [outcome[:2] for outcome in recorder.outcomes] == [(0, RESET)]


def test_without_a_length_the_close_ends_the_answer() -> None:
    connection, recorder, _ = connected()
    connection.send(0, b"request")
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhel")
    connection.data_received(b"lo")
    connection.connection_lost(None)
    assert recorder.outcomes == [(0, 200, b"HTTP/1.1 200 OK\r\n\r\nhello", False)]


def test_an_idle_close_is_no_outcome() -> None:
    connection, recorder, _ = connected()
    connection.connection_lost(None)
    assert (recorder.outcomes, recorder.losses) == ([], 1)


def test_unasked_bytes_close_the_connection() -> None:
    connection, recorder, transport = connected()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert recorder.outcomes == []
    assert not connection.open
    transport.abort.assert_called_once()


def test_bytes_after_the_answer_close_the_connection() -> None:
    connection, recorder, _ = connected()
    connection.send(0, b"request")
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi extra")
    assert [(o[1], o[3]) for o in recorder.outcomes] == [(200, False)]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70000,
    ],
)
def test_what_is_not_http_is_a_bad_response(answer: bytes) -> None:
    connection, recorder, _ = connected()
    connection.send(0, b"request")
    connection.data_received(answer)
    assert [outcome[1] for outcome in recorder.outcomes] == [BAD_RESPONSE]


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5))
def test_decode_chunked_inverts_encoding(parts: list[bytes]) -> None:
    encoded = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts) + b"0\r\n\r\n"
    assert decode_chunked(b"head" + encoded, 4) == (b"".join(parts), 4 + len(encoded))
    assert decode_chunked(b"head" + encoded[:-1], 4) is None
