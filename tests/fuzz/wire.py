"""Bytes on a connection -> what came back, within a time, and whether a server may answer so.

A Case is what is sent, as it is sent; nothing here would mend it. What came back is judged by rules that hold for every
request, however hostile: an answer or the end of the connection in time, no status of 500 and above but 503, and a
refusal that comes from us says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE_S = 15.0
MAX_ANSWER = 64 << 20
Check = Callable[["Answer"], str]
"""What is wrong with the answer; "" if nothing."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_ours(self) -> bool:
        """From the replica's code, not a page of the proxy's or a line of the parser's."""
        return self.headers.get("content-type", "").startswith("application/")


@dataclass(frozen=True)
class Case:
    """What is sent on a connection."""

    kind: str
    what: str
    data: bytes
    whole: bool = True
    """A well-framed request: it must be answered, and the connection then either serves on or is closed."""
    wrong: bool = False
    """It must not be answered with 200."""
    pieces: int = 1
    """It comes in so many, with a little time between them."""
    answers: int = 1
    """So many requests are in it."""


@dataclass
class Heard:
    """What came back."""

    answers: list[Answer] = field(default_factory=list)
    closed: bool = False
    """The server ended the connection."""
    fault: str = ""
    took_s: float = 0.0


class Connection:
    """A client's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.is_open = True

    @classmethod
    async def to(cls, address: str) -> Connection:
        host, port = address.rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port), limit=MAX_ANSWER))

    async def send(self, data: bytes, pieces: int = 1) -> None:
        """A server that has refused and closed already is no error."""
        size = max(1, -(-len(data) // pieces))
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), size):
                self._writer.write(data[start : start + size])
                await self._writer.drain()
                if pieces > 1:
                    await asyncio.sleep(0.002)

    async def answer(self) -> Answer | None:
        """The next one; None if the server closed instead. Raises ValueError for what is no HTTP answer."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            self.is_open = False
            if error.partial[3:4] == b"\x04":  # HAProxy speaks HTTP/2 with who begins so: SETTINGS, then GOAWAY
                return None
            if error.partial:
                raise ValueError(f"half an answer: {error.partial[:100]!r}") from error
            return None
        except ConnectionError:
            self.is_open = False
            return None
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        if not version.startswith("HTTP/1.") or len(status) != 3:
            raise ValueError(f"no HTTP answer: {first[:100]!r}")
        if status == "100":
            return await self.answer()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = b"" if status in ("204", "304") else await self._body(headers)
        if headers.get("connection", "").lower() == "close":
            self.is_open = False
        return Answer(int(status), headers, body)

    async def _body(self, headers: dict[str, str]) -> bytes:
        try:
            if "content-length" in headers:
                return await self._reader.readexactly(int(headers["content-length"]))
            if headers.get("transfer-encoding", "") == "chunked":
                parts = []
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    parts.append((await self._reader.readexactly(size + 2))[:-2])
                await self._reader.readuntil(b"\r\n")
                return b"".join(parts)
            self.is_open = False
            return await self._reader.read()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.is_open = False
            raise ValueError(f"the answer's body is cut off: {error}") from error

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), 5.0)


async def ask(address: str, case: Case, valid: bytes, check: Check, patience_s: float = PATIENCE_S) -> Heard:
    """Send it; what is whole must be answered, and on the same connection the valid request after it, rightly."""
    heard = Heard()
    loop = asyncio.get_running_loop()
    began = loop.time()
    connection = None
    try:
        async with asyncio.timeout(patience_s):
            connection = await Connection.to(address)
            await connection.send(case.data, case.pieces)
            if case.whole:
                await _whole(connection, case, valid, check, heard)
            else:
                await _torn(connection, heard)
    except TimeoutError:
        heard.fault = f"neither an answer nor the connection's end within {patience_s:g} s"
    except ValueError as error:
        heard.fault = str(error)
    except OSError as error:
        heard.fault = f"{type(error).__name__}: {error}"
    finally:
        if connection is not None:
            await connection.close()
    heard.took_s = loop.time() - began
    heard.fault = heard.fault or judge(case, heard)
    return heard


async def _whole(connection: Connection, case: Case, valid: bytes, check: Check, heard: Heard) -> None:
    for _ in range(case.answers):
        answer = await connection.answer()
        if answer is None:
            heard.closed = True
            return
        heard.answers.append(answer)
        if not connection.is_open:
            heard.closed = True
            return
    await connection.send(valid)
    answer = await connection.answer()
    if answer is None:
        heard.closed = True
    elif wrong := check(answer):
        heard.fault = f"the valid request behind it, on its connection: {wrong}"


async def _torn(connection: Connection, heard: Heard) -> None:
    """What is not whole may be refused at once, or waited for; we wait a moment, and leave."""
    try:
        async with asyncio.timeout(0.05):
            while True:
                answer = await connection.answer()
                if answer is None:
                    heard.closed = True
                    return
                heard.answers.append(answer)
    except TimeoutError:
        return


def judge(case: Case, heard: Heard) -> str:
    """What is wrong with what came back, "" if nothing."""
    if case.whole and not heard.answers:
        return "the connection was closed without an answer"
    if case.kind == "framing" and sum(answer.status == 200 for answer in heard.answers) > 1:
        return "one request was taken for two"
    for answer in heard.answers:
        if answer.status >= 500 and answer.status != 503:
            return f"{answer.status} {answer.body[:200]!r}"
        if answer.status >= 400 and answer.is_ours and (wrong := unexplained(answer)):
            return wrong
        if case.wrong and answer.status < 300:
            return f"it was answered with {answer.status}: {answer.body[:120]!r}"
    return ""


def unexplained(answer: Answer) -> str:
    """Every refusal of ours is {"error": words}."""
    try:
        said = json.loads(answer.body)
    except ValueError:
        return f"{answer.status} whose body is no JSON: {answer.body[:120]!r}"
    if not (isinstance(said, dict) and list(said) == ["error"] and isinstance(said["error"], str) and said["error"]):
        return f"{answer.status} that does not say why: {answer.body[:120]!r}"
    if len(said["error"]) > 4096:
        return f"{answer.status} that says it in {len(said['error'])} characters"
    return ""
