"""Hostile HTTP: heads, paths and framing that are wrong, doubtful, torn or slow."""

from __future__ import annotations

import json
import random
import zlib

from tests.fuzz.bodies import Generator
from tests.fuzz.valid import Valid, post
from tests.fuzz.wire import Case

CANARY = "fuzzcanary"
"""In every name that tries to leave its folder: no file may ever be opened by it."""
_ODD = ["\x00", "\x7f", "\xff", "%00", "%0d%0a", "a" * 300, "a" * 5000, "\t", " ", "\x0b", ";", "'\"<>", "{}", "\u00e9"]
_CLIMBS = [
    "../" * 6 + f"etc/{CANARY}", "..%2f" * 6 + f"etc%2f{CANARY}", "%2e%2e/" * 6 + f"tmp/{CANARY}",
    "%2e%2e%2f" * 6 + f"tmp%2f{CANARY}", f"/etc/{CANARY}", f"%2fetc%2f{CANARY}", f"..\\..\\{CANARY}",
    f"%5c..%5c{CANARY}",
    "%c0%ae%c0%ae/" * 3 + CANARY, "..%252f" * 3 + CANARY, f"{CANARY}%00.json", f".{CANARY}", f"~/{CANARY}",
    f"refs/active/{CANARY}", f"{CANARY}/int8", f"file:///etc/{CANARY}", f"{CANARY}*", f"$({CANARY})",
    f"${{HOME}}/{CANARY}",
    f"CON{CANARY}", f"{CANARY}::$DATA", "..", ".", "%2e", "", "%", "%zz", "%ff", "%f0%9f%98%80", "a" * 4000,
]  # fmt: skip


def paths(valid: Valid, rng: random.Random) -> Case:
    """Names of models, versions and whatever else that climb out of their folder, or are no names."""
    climb = rng.choice(_CLIMBS)
    model = valid.path.removesuffix("/infer")
    path = rng.choice([
        f"/v2/models/{climb}", f"/v2/models/{climb}/infer", f"/v2/models/{climb}/ready",
        f"/v2/models/{climb}/versions/1",
        f"{model}/versions/{climb}", f"{model}/versions/{climb}/infer", f"{model}/{climb}", f"/v2/{climb}", f"/{climb}",
        f"/v2/repository/models/{climb}/load", f"/v2/repository/models/{climb}/unload", f"/v2/repository/{climb}",
        f"{model}/infer?{climb}", f"http://fuzz/v2/models/{climb}", f"/v2/health/{climb}", f"{model}/config/{climb}",
    ])  # fmt: skip
    method = rng.choice(["GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
    body = valid.of("json", rng).body if method in ("POST", "PUT", "PATCH") else b""
    if "load" in path and rng.random() < 0.7:
        body = rng.choice(
            [b"{}", b"", b"[]", b'{"parameters":{"config":"%s"}}' % climb[:40].encode("latin-1", "replace"), b"{"]
        )
    length = f"content-length: {len(body)}\r\n" if body or rng.random() < 0.5 else ""
    head = f"{method} {path} HTTP/1.1\r\nhost: fuzz\r\n{length}\r\n".encode("latin-1", "replace")
    # An answer to HEAD has no body, whatever its length says: that client reads none, and neither do we.
    return Case("paths", f"{method} {path[:60]}", head + body, whole=method != "HEAD")


def repository(valid: Valid, rng: random.Random) -> Case:
    """Loads that name what is no variant, in every way: names are looked up in a store of files."""
    model = valid.path.split("/")[3]
    climb = rng.choice(_CLIMBS)
    wrong: object = rng.choice([climb, climb, climb, None, 1, [climb], {climb: climb}, "a" * 600, "\x00", True])
    key = rng.choice(["variant", "variant", "variant", "config", "file:1/model.onnx", climb])
    what = rng.choice([{"parameters": {key: wrong}}, {"parameters": wrong}, [wrong], wrong])
    path = f"/v2/repository/models/{model}/" + rng.choice(
        ["load", "load", "load", "load/", f"load/{climb[:50]}", "index"]
    )
    return Case(
        "repository", f"{key[:20]}={str(wrong)[:40]}", post(path.replace(" ", "%20"), json.dumps(what).encode())
    )


def headers(valid: Valid, rng: random.Random) -> Case:
    """Heads with what no head should have."""
    one = valid.request(rng)
    extra = dict(one.headers)
    name = rng.choice([
        "sluice-timeout", "sluice-priority", "sluice-accuracy", "sluice-tenant", "x-request-timeout-seconds", "accept",
        "accept-encoding", "content-type", "x-request-id", "expect", "range", "te", "upgrade", "connection", "cookie",
        "x-forwarded-for", "transfer-encoding", "traceparent", "serve_multiplexed_model_id", "content-encoding", "host",
        "x-" + "n" * rng.choice([10, 2000]), "content-length", "proxy", "x-http-method-override", "if-match",
    ])  # fmt: skip
    value = rng.choice([
        "-1", "NaN", "inf", "1e999", "9" * 400, "0", "best", "100-continue", "bytes=0-", "websocket",
        "keep-alive, close",
        "gzip;q=NaN", "gzip;q=" + "9" * 50, ",".join(["gzip"] * 200), "*;q=0", "identity;q=0", "chunked", "close",
        "upgrade",
        *_ODD,
    ])  # fmt: skip
    if name in ("content-length", "transfer-encoding", "connection", "expect", "upgrade", "host", "te"):
        # Framing is another kind's; here a second, contradicting line is enough.
        whole = False
    else:
        whole = not any(c in value for c in "\x00\r\n")
    extra[name] = value
    if rng.random() < 0.1:
        extra |= {f"x-{n}": "v" * rng.choice([1, 100]) for n in range(rng.choice([50, 150, 500]))}
    return Case("heads", f"{name[:30]}: {value[:30]!r}", post(one.path, one.body, extra), whole=whole)


def framing(valid: Valid, rng: random.Random) -> Case:
    """Lengths and chunks that contradict each other, or are none: refused or closed, never waited on as if it were a
    whole request, and never taken for two."""
    body = valid.of("json", rng).body
    start = f"POST {valid.path} HTTP/1.1\r\nhost: fuzz\r\n"
    size = f"{len(body):x}".encode()
    chunked = b"%s\r\n%s\r\n0\r\n\r\n" % (size, body)
    lines, sent = rng.choice([
        ("content-length: -1", body), ("content-length: +5", body), ("content-length: 0x10", body),
        ("content-length: 99999999999999999999", body), ("content-length: ", body), ("content-length: 1e3", body),
        (f"content-length: {len(body)}, {len(body) + 1}", body),
        (f"content-length: {len(body)}\r\ncontent-length: 3", body),
        (f"content-length: {len(body)}\r\ntransfer-encoding: chunked", chunked),
        ("transfer-encoding: chunked\r\ncontent-length: 4", chunked),
        ("transfer-encoding: xchunked", chunked), ("transfer-encoding: chunked, identity", chunked),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", chunked), ("transfer-encoding:\x0bchunked",
        chunked),
        ("transfer-encoding : chunked", chunked), ("transfer-encoding: identity", body),
        ("transfer-encoding: chunked", b"-1\r\n" + body), ("transfer-encoding: chunked",
        b"ffffffffffffffff\r\n" + body),
        ("transfer-encoding: chunked", b"zz\r\n" + body + b"\r\n"), ("transfer-encoding: chunked", size + b"\n" + body),
        ("transfer-encoding: chunked", size + b";" + b"e" * 20_000 + b"\r\n" + body), ("transfer-encoding: chunked",
        b"5\r\nabc"),
        ("transfer-encoding: chunked", size + b"\r\n" + body + b"XX0\r\n\r\n"), ("transfer-encoding: chunked",
        b"\r\n\r\n"),
        (f" content-length: {len(body)}", body), (f"content-length: {len(body)}\r\n folded: x", body),
        ("no colon here", body),
        (f"content-length\x00: {len(body)}", body), (": no name", body), (f"content-length: {len(body) + 50}", body),
        ("content-length: 0", body), ("content-length: 1", body),
    ])  # fmt: skip
    data = f"{start}{lines}\r\n\r\n".encode("latin-1") + sent
    return Case("framing", lines[:60], data, whole=False)


def chunks(valid: Valid, rng: random.Random) -> Case:
    """A right request in chunks of any size, with what chunks may bear: it must be answered as ever."""
    one = valid.of("json", rng)
    sent, rest = [], one.body
    while rest:
        size = rng.randint(1, max(1, len(one.body) // 3))
        extension = rng.choice([b"", b"", b";a=b", b";x"])
        sent.append(b"%x%s\r\n%s\r\n" % (len(rest[:size]), extension, rest[:size]))
        rest = rest[size:]
    data = f"POST {one.path} HTTP/1.1\r\nhost: fuzz\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    tail = rng.choice([b"0\r\n\r\n", b"000\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n"])
    return Case("chunks", f"{len(sent)}", data + b"".join(sent) + tail, pieces=rng.choice([1, 3]))


def torn(valid: Valid, rng: random.Random) -> Case:
    """Half a request, and then nothing, or the client's end."""
    data = valid.request(rng).data
    return Case("torn", "", data[: rng.randrange(1, len(data))], whole=False, pieces=rng.choice([1, 1, 4]))


def slow(valid: Valid, rng: random.Random) -> Case:
    """A right request in small pieces: it must be answered as ever."""
    return Case("slow", "", valid.request(rng).data, pieces=rng.choice([5, 20, 60]))


def pipelined(valid: Valid, rng: random.Random) -> Case:
    """Right requests one behind the other without waiting: as many answers, in order."""
    count = rng.randint(2, 8)
    return Case("pipelined", f"{count}", b"".join(valid.request(rng).data for _ in range(count)), answers=count)


def rubbish(valid: Valid, rng: random.Random) -> Case:
    """No HTTP/1.1 at all, or a right request with rubbish right behind it."""
    one = valid.of("json", rng).data
    data = rng.choice([
        rng.randbytes(rng.randint(1, 2000)), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(100), b"GET /\r\n", b"GET / HTTP/0.9\r\n\r\n",
        b"\r\n" * 100,
        one.replace(b"HTTP/1.1", rng.choice([b"HTTP/9.9", b"HTTP/1.", b"http/1.1", b"HTTP/1.1\x00", b""]), 1),
        one.replace(b"POST", rng.choice([b"post", b"P" * 5000, b"G\x00T", b"", b" POST", b"POST\t"]), 1),
        one.replace(b"\r\n", rng.choice([b"\n", b"\r", b"\r\r\n", b"\n\r"])), one + rng.randbytes(rng.randint(1, 3000)),
        one + b"\x00" * 100, b"GET /" + b"a" * rng.choice([8000, 20_000, 100_000]) + b" HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"a: " + b"b" * rng.choice([8000, 20_000, 70_000]) + b"\r\n\r\n", zlib.compress(one),
        b"POST " + b"/" * 3000 + b" HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: h\r\nupgrade: h2c\r\nconnection: upgrade, "
        b"http2-settings\r\nhttp2-settings: AA\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n", b"GET /v2 HTTP/1.1\r\n\r\n",
    ])  # fmt: skip
    return Case("rubbish", repr(data[:40]), data, whole=False)


FRAMES: dict[Generator, int] = {
    paths: 14, repository: 3, headers: 14, framing: 10, chunks: 3, torn: 5, slow: 2, pipelined: 3, rubbish: 10,
}  # fmt: skip
"""Each with its weight."""
