"""curl: the command that people have. Every request is one command line; the answer's status, headers and body are
compared with what the specification's tables say."""

from __future__ import annotations

import gzip
import json
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from arrays import check, datatype, known
from harness import Checks, is_error

checks = Checks()
inputs, outputs = known(checks)
BASE = f"http://{checks.http}"
MODEL = f"/v2/models/{checks.model}"
INFER = f"{MODEL}/infer"
JSON = ("-H", "Content-Type: application/json")
LENGTH = "inference-header-content-length"
Answer = tuple[int, dict[str, str], bytes]


def curl(path: str, *options: str, body: bytes | None = None) -> Answer:
    """(status, headers, body)"""
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--include", "-H", "Expect:", *options]
    if body is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run([*command, BASE + path], input=body or b"", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split(" ")[1]), headers, content


def good(path: str, *options: str, body: bytes | None = None) -> Any:
    """The JSON of an answer that must be 200."""
    status, headers, content = curl(path, *options, body=body)
    assert status == 200, f"{status} {content[:200]!r}"
    assert headers["content-type"] == "application/json"
    return json.loads(content)


def refused(status: int, path: str, *options: str, body: bytes | None = None) -> None:
    """It must be refused with that status, and say why."""
    found, headers, content = curl(path, *options, body=body)
    assert found == status, f"{found} {content[:200]!r}"
    assert headers["content-type"] == "application/json"
    assert is_error(json.loads(content)), content[:200]


def listed(array: np.ndarray, *, flat: bool = True) -> list[Any]:
    if array.dtype == object:
        array = np.array([x.decode() for x in array.ravel()], object).reshape(array.shape)
    made: list[Any] = (array.ravel() if flat else array).tolist()
    return made


def packed(array: np.ndarray) -> bytes:
    """Raw bytes: of BYTES, each element behind its length (Triton's binary tensor data extension)."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(x).to_bytes(4, "little") + x for x in array.ravel())


def unpacked(entry: dict[str, Any], raw: bytes) -> np.ndarray:
    shape, kind = entry["shape"], entry["datatype"]
    if kind == "BYTES":
        found = []
        while raw:
            size = int.from_bytes(raw[:4], "little")
            found.append(raw[4 : 4 + size])
            raw = raw[4 + size :]
        return np.array(found, object).reshape(shape)
    return np.frombuffer(raw, dtype_of(kind)).reshape(shape)


def dtype_of(kind: str) -> np.dtype[Any]:
    name = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}.get(kind, kind.lower())
    return np.dtype(name)


def tensor(entry: dict[str, Any]) -> np.ndarray:
    """Of an output in JSON."""
    kind = entry["datatype"]
    array = np.array(entry["data"], object if kind == "BYTES" else dtype_of(kind))
    return array.reshape(entry["shape"])


def entry_of(name: str, /, *, binary: bool = False, flat: bool = True, **changes: Any) -> dict[str, Any]:
    array = inputs[name]
    made: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype(array)}
    made |= {"parameters": {"binary_data_size": len(packed(array))}} if binary else {"data": listed(array, flat=flat)}
    return {key: value for key, value in (made | changes).items() if value is not None}


def request(entries: list[dict[str, Any]], **fields: Any) -> bytes:
    return json.dumps({"inputs": entries, **fields}).encode()


def all_in_json(**fields: Any) -> bytes:
    return request([entry_of(name) for name in inputs], **fields)


def infer_binary(*, binary_in: bool = True, binary_out: bool = True, only: str | None = None) -> dict[str, np.ndarray]:
    """Outputs of a request whose tensors are raw bytes, back and forth as told. `only` is the one that is."""
    raw = {name: binary_in and only in (None, name) for name in inputs}
    fields: dict[str, Any] = {"parameters": {"binary_data_output": True}} if binary_out else {}
    head = request([entry_of(name, binary=raw[name]) for name in inputs], **fields)
    body = head + b"".join(packed(array) for name, array in inputs.items() if raw[name])
    options = ["-H", f"{LENGTH}: {len(head)}", "-H", "Content-Type: application/octet-stream"]
    status, headers, content = curl(INFER, *options, body=body)
    assert status == 200, f"{status} {content[:200]!r}"
    if not binary_out:
        return {entry["name"]: tensor(entry) for entry in json.loads(content)["outputs"]}
    end = int(headers[LENGTH])
    found = {}
    for entry in json.loads(content[:end])["outputs"]:
        size = entry["parameters"]["binary_data_size"]
        found[entry["name"]] = unpacked(entry, content[end : end + size])
        end += size
    assert end == len(content), "bytes are left over"
    return found


def check_all(answer: dict[str, Any]) -> None:
    found = {entry["name"]: entry for entry in answer["outputs"]}
    assert list(found) == list(outputs)
    for name, want in outputs.items():
        assert found[name]["datatype"] == datatype(want)
        check(tensor(found[name]), want)


def api() -> None:
    with checks.row("live"):
        assert good("/v2/health/live")["live"] is True
    with checks.row("ready"):
        said = good("/v2/health/ready")
        assert said["live"] is True, "the text's field"
        assert said["ready"] is True, "the field of its clients"
    with checks.row("server"):
        said = good("/v2")
        assert all(isinstance(said[key], str) for key in ("name", "version"))
        assert all(isinstance(each, str) for each in said["extensions"])
    for row, path in (("model", MODEL), ("model-version", f"{MODEL}/versions/{checks.version}")):
        with checks.row(row):
            said = good(path)
            assert said["name"] == checks.model
            assert checks.version in said["versions"]
            assert isinstance(said["platform"], str)
            for key, tensors in (("inputs", inputs), ("outputs", outputs)):
                assert [each["name"] for each in said[key]] == list(tensors)
                for each, array in zip(said[key], tensors.values(), strict=True):
                    assert each["datatype"] == datatype(array)
                    assert each["shape"] == [-1, *array.shape[1:]]
    for row, path in (("model-ready", MODEL), ("model-ready-version", f"{MODEL}/versions/{checks.version}")):
        with checks.row(row):
            assert good(f"{path}/ready") == {"name": checks.model, "ready": True}
    for row, path in (("infer", MODEL), ("infer-version", f"{MODEL}/versions/{checks.version}")):
        with checks.row(row):
            check_all(good(f"{path}/infer", *JSON, body=all_in_json()))


def payload() -> None:
    with checks.row("id"):
        assert good(INFER, *JSON, body=all_in_json(id="forty-two"))["id"] == "forty-two"
        assert not good(INFER, *JSON, body=all_in_json()).get("id")
    with checks.row("parameters"):
        check_all(good(INFER, *JSON, body=all_in_json(parameters={"text": "a", "number": 1.5, "flag": True})))
    with checks.row("outputs"):
        last = list(outputs)[-1]
        said = good(INFER, *JSON, body=all_in_json(outputs=[{"name": last}]))["outputs"]
        assert [each["name"] for each in said] == [last]
    with checks.row("model-name"):
        said = good(INFER, *JSON, body=all_in_json())
        assert (said["model_name"], said["model_version"]) == (checks.model, checks.version)
    with checks.row("batch"):
        assert all(len(array) > 1 for array in inputs.values())
        check_all(good(INFER, *JSON, body=all_in_json()))
    with checks.row("flat"):
        check_all(good(INFER, *JSON, body=all_in_json()))
    with checks.row("nested"):
        check_all(good(INFER, *JSON, body=request([entry_of(name, flat=False) for name in inputs])))
    with checks.row("raw-in"):
        for name, array in infer_binary(binary_out=False).items():
            check(array, outputs[name])
    with checks.row("raw-out"):
        for name, array in infer_binary(binary_in=False).items():
            check(array, outputs[name])


def datatypes() -> None:
    """Of one request, what is said of each tensor."""
    for row, raw in (("list", False), ("raw", True)):
        for name, array in inputs.items():
            kind = datatype(array)
            with checks.row(f"{kind}-{row}"):
                if raw:
                    check(infer_binary()[f"{name}_back"], outputs[f"{name}_back"])
                else:
                    wanted = [{"name": f"{name}_back"}]
                    [entry] = good(INFER, *JSON, body=all_in_json(outputs=wanted))["outputs"]
                    assert entry["datatype"] == kind
                    check(tensor(entry), outputs[f"{name}_back"])
    if len(inputs) > 1:
        with checks.row("mixed"):
            for name, array in infer_binary(only=list(inputs)[1]).items():
                check(array, outputs[name])


def errors() -> None:
    first = next(iter(inputs))
    with checks.row("unknown-model"):
        refused(404, "/v2/models/nobody")
        refused(404, "/v2/models/nobody/ready")
    with checks.row("unknown-version"):
        refused(404, f"{MODEL}/versions/0")
        refused(404, f"{MODEL}/versions/0/infer", *JSON, body=all_in_json())
    with checks.row("unknown-infer"):
        refused(404, "/v2/models/nobody/infer", *JSON, body=all_in_json())
    bad = {
        "not-json": b"{", "no-inputs": b"{}", "unknown-input": request([entry_of(first, name="nobody")]),
        "wrong-datatype": request([entry_of(first, datatype="FP64")]),
        "wrong-shape": request([entry_of(first, shape=[1, 2])]),
        "few-values": request([entry_of(first, data=listed(inputs[first])[:-1])]),
        "unknown-output": all_in_json(outputs=[{"name": "nobody"}]),
    }  # fmt: skip
    for row, body in bad.items():
        with checks.row(row):
            refused(400, INFER, *JSON, body=body)
    with checks.row("wrong-method"):
        refused(405, INFER)
        refused(405, "/v2", "-X", "DELETE")
    with checks.row("no-path"):
        refused(404, "/v1/models")
        refused(404, f"{MODEL}/nothing")
    with checks.row("too-large"):
        refused(413, INFER, *JSON, body=b" " * (20 << 20))


def extensions() -> None:
    body = all_in_json()
    with checks.row("gzip-in"):
        check_all(good(INFER, *JSON, "-H", "Content-Encoding: gzip", body=gzip.compress(body)))
    with checks.row("deflate-in"):
        check_all(good(INFER, *JSON, "-H", "Content-Encoding: deflate", body=zlib.compress(body)))
    with checks.row("gzip-out"):
        many = np.repeat(inputs["image"], 20, axis=0)
        large = request([entry_of("image", shape=list(many.shape), data=listed(many))])
        status, headers, content = curl(INFER, *JSON, "-H", "Accept-Encoding: gzip", body=large)
        assert status == 200
        if "content-encoding" in headers:  # the server may pack what the client takes, and need not
            assert headers["content-encoding"] == "gzip"
            content = gzip.decompress(content)
        [logits, _] = json.loads(content)["outputs"]
        check(tensor(logits), np.repeat(outputs["logits"], 20, axis=0))
    with checks.row("config"):
        said = good(f"{MODEL}/config")
        assert said["name"] == checks.model
        assert said["input"][0]["data_type"] == f"TYPE_{datatype(inputs['image'])}"
    with checks.row("stats"):
        [said] = good(f"{MODEL}/stats")["model_stats"]
        assert said["name"] == checks.model
        assert said["inference_stats"]["success"]["count"] > 0
    with checks.row("index"):
        said = good("/v2/repository/index", *JSON, body=b"{}")
        assert any(each["name"] == checks.model and each["state"] == "READY" for each in said)
    with checks.row("octets"):
        options = ("-H", "Content-Type: application/octet-stream")
        said = good(INFER, *options, body=inputs["image"].tobytes())
        check_all(said)
    for kind in ("png", "jpeg"):
        with checks.row(kind):
            path = Path(checks.files[kind])
            said = good(INFER, "-H", f"Content-Type: image/{kind}", body=path.read_bytes())
            found = {each["name"]: each for each in said["outputs"]}
            if kind == "png":  # loses nothing, so the answer is that of the pixels
                check(tensor(found["logits"]), outputs["logits"][:1])
            else:
                assert found["logits"]["shape"] == [1, 10]
    with checks.row("openapi"):
        said = good("/v2/openapi.json")
        assert said["openapi"].startswith("3.")
        assert any(path.endswith("/infer") for path in said["paths"])


def repository() -> None:
    change = f"/v2/repository/models/{checks.model}"
    with checks.row("load"):
        good(f"{change}/load", *JSON, body=b"{}")
        check_all(good(INFER, *JSON, body=all_in_json()))
        refused(400, f"{change}/load", *JSON, body=b'{"parameters": {"variant": "../../etc/passwd"}}')
    with checks.row("unload"):
        good(f"{change}/unload", *JSON, body=b"{}")
        try:
            refused(503, INFER, *JSON, body=all_in_json())
        finally:
            good(f"{change}/load", *JSON, body=b"{}")
        check_all(good(INFER, *JSON, body=all_in_json()))


if checks.serves == "pictures":
    api()
    payload()
    errors()
    extensions()
    if checks.repository:
        repository()
else:
    datatypes()
version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
checks.report(curl=version)
