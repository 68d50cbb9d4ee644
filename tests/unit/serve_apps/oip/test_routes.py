"""The REST protocol at the ASGI boundary: each path, each method, and that nothing odd becomes a 500."""

from __future__ import annotations

import time
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InferenceFailed
from cluster.variants import TensorSpec
from serve_apps.oip import answers
from serve_apps.oip.codec import HEADER_LENGTH, encode_request
from serve_apps.oip.routes import OipApp
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.oip.served import Host, ask, variant

INFER = "/v2/models/adder/infer"
ONE = {"x": np.array([[1, 2, 3]], np.int32)}
BODY, _ = encode_request(ONE, binary=False, id="r1")


def routed(host: Host, **options: Any) -> OipApp:
    return OipApp(lambda: host, **options)


def test_server_paths() -> None:
    async def test() -> None:
        host = Host()
        app = routed(host)
        server = (await ask(app, "GET", "/v2")).json()
        assert server["version"] == installed_version("sluice")
        assert {"binary_tensor_data", "schedule_policy"} <= set(server["extensions"])
        assert (await ask(app, "GET", "/v2/")).json() == server
        assert (await ask(app, "GET", "/v2/health/live")).json() == {"live": True}
        assert (await ask(app, "GET", "/v2/health/ready")).json() == {"live": True, "ready": True}
        host.ready = False
        unready = await ask(app, "GET", "/v2/health/ready")
        assert unready.status == 503
        assert unready.json() == {"live": True, "ready": False}
        assert (await ask(app, "GET", "/v2/health/live")).status == 200
        host.batcher.close()

    run(test())


def test_live_needs_no_host() -> None:
    """Serve makes the app before the replica is whole."""

    def nobody() -> Host:
        raise RuntimeError("not yet")

    async def test() -> None:
        app = OipApp(nobody)
        assert (await ask(app, "GET", "/v2/health/live")).status == 200
        assert (await ask(app, "GET", "/v2/health/ready")).status == 500

    run(test())


@pytest.mark.parametrize("versioned", [False, True])
def test_model_paths(versioned: bool) -> None:
    async def test() -> None:
        host = Host()
        app = routed(host)
        version = host.variant.id
        model = "/v2/models/adder" + (f"/versions/{version}" if versioned else "")
        metadata = (await ask(app, "GET", model)).json()
        assert metadata == {
            "name": "adder", "versions": [version], "platform": "onnx_onnxv1",
            "inputs": [{"name": "x", "datatype": "INT32", "shape": [-1, 3]}],
            "outputs": [
                {"name": "total", "datatype": "INT64", "shape": [-1]},
                {"name": "twice", "datatype": "FP32", "shape": [-1, 3]},
            ],
        }  # fmt: skip
        assert (await ask(app, "GET", model + "/ready")).json() == {"name": "adder", "ready": True}
        answer = (await ask(app, "POST", model + "/infer", BODY)).json()
        assert answer == {
            "model_name": "adder", "model_version": version, "id": "r1", "parameters": {"variant": "sum/1"},
            "outputs": [
                {"name": "total", "datatype": "INT64", "shape": [1], "data": [6]},
                {"name": "twice", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]},
            ],
        }  # fmt: skip
        host.ready = False
        assert (await ask(app, "GET", model + "/ready")).status == 503
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("versioned", [False, True])
def test_config_tells_how_the_model_is_served_in_triton_s_words(versioned: bool) -> None:
    async def test() -> None:
        host = Host(max_batch_size=8, max_queued_requests=99)
        version = host.variant.id
        path = "/v2/models/adder" + (f"/versions/{version}" if versioned else "") + "/config"
        answer = await ask(routed(host), "GET", path)
        assert answer.json() == {
            "name": "adder", "platform": "onnx_onnxv1", "backend": "onnxruntime",
            "version_policy": {"specific": {"versions": [version]}}, "max_batch_size": 8,
            "input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [3]}],
            "output": [
                {"name": "total", "data_type": "TYPE_INT64", "dims": []},
                {"name": "twice", "data_type": "TYPE_FP32", "dims": [3]},
            ],
            "instance_group": [{"kind": "KIND_CPU", "count": 2}],
            "dynamic_batching": {"max_queue_delay_microseconds": 0},
            "parameters": {
                "variant": {"string_value": "sum/1"}, "precision": {"string_value": "fp32"},
                "max_queued_requests": {"string_value": "99"}, "runtime.name": {"string_value": "onnxruntime"},
                "runtime.threads": {"string_value": "1"}, "runtime.inter_op_threads": {"string_value": "1"},
                "runtime.streams": {"string_value": "2"},
            },
        }  # fmt: skip
        host.serve(variant("sum/2", precision="int8", family="other"))
        now = (await ask(routed(host), "GET", "/v2/models/adder/config")).json()
        assert now["parameters"]["precision"]["string_value"] == "int8"
        assert now["version_policy"]["specific"]["versions"] == [host.variant.id] != [version]
        host.batcher.close()

    run(test())


def test_statistics_tell_how_many_were_answered_and_in_what_batches() -> None:
    async def test() -> None:
        host = Host()
        app = routed(host)
        for _ in range(3):
            await ask(app, "POST", "/v2/models/adder/infer", BODY)
        bad = b'{"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 3], "data": [-1, 0, 0]}]}'
        assert (await ask(app, "POST", "/v2/models/adder/infer", bad)).status == 500
        [told] = (await ask(app, "GET", "/v2/models/adder/stats")).json()["model_stats"]
        assert (told["name"], told["version"]) == ("adder", host.variant.id)
        assert (told["inference_count"], told["execution_count"]) == (3, 3)
        stats = told["inference_stats"]
        [batches] = told["batch_stats"]
        for part in ("compute_input", "compute_infer", "compute_output"):
            assert stats[part] == batches[part]
            assert (stats[part]["count"], stats[part]["ns"] >= 0) == (3, True)
        assert 0 < stats["compute_infer"]["ns"] < stats["success"]["ns"]
        assert (batches["batch_size"], stats["queue"]["count"]) == (1, 3)
        assert "ns" not in stats["fail"], "which is not measured"
        assert "cache_hit" not in stats
        assert abs(told["last_inference"] / 1e3 - time.time()) < 60
        assert (await ask(app, "GET", "/v2/models/stats")).json()["model_stats"] == [told]
        of_version = f"/v2/models/adder/versions/{host.variant.id}/stats"
        assert (await ask(app, "GET", of_version)).json()["model_stats"] == [told]
        assert (stats["success"]["count"], stats["fail"]["count"], stats["cancel"]["count"]) == (3, 1, 0)
        host.batcher.close()

    run(test())


def test_text_is_a_string_in_triton_s_words() -> None:
    async def test() -> None:
        host = Host()
        spec = TensorSpec(name="x", datatype="BYTES", shape=(-1, 1))
        host.serve(variant(inputs=(spec,)))
        (entry,) = (await ask(routed(host), "GET", "/v2/models/adder/config")).json()["input"]
        assert entry == {"name": "x", "data_type": "TYPE_STRING", "dims": [1]}
        host.batcher.close()

    run(test())


def test_head_is_get_without_a_body() -> None:
    async def test() -> None:
        host = Host()
        app = routed(host)
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/adder", "/v2/models/adder/ready",
                     "/v2/models/adder/config"):  # fmt: skip
            get, head = await ask(app, "GET", path), await ask(app, "HEAD", path)
            assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")
        host.batcher.close()

    run(test())


@pytest.mark.parametrize(
    ("path", "allowed", "refused"),
    [
        ("/v2", "GET, HEAD, OPTIONS", ["POST", "PUT", "DELETE"]),
        ("/v2/health/live", "GET, HEAD, OPTIONS", ["POST"]),
        ("/v2/health/ready", "GET, HEAD, OPTIONS", ["POST"]),
        ("/v2/models/adder", "GET, HEAD, OPTIONS", ["POST"]),
        ("/v2/models/adder/ready", "GET, HEAD, OPTIONS", ["PATCH"]),
        ("/v2/models/adder/config", "GET, HEAD, OPTIONS", ["POST", "PUT"]),
        (INFER, "POST, OPTIONS", ["GET", "HEAD", "PUT", "X" * 500]),
        ("/v2/repository/index", "POST, OPTIONS", ["GET", "HEAD"]),
        ("/v2/repository/models/adder/load", "POST, OPTIONS", ["GET", "DELETE"]),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_one(path: str, allowed: str, refused: list[str]) -> None:
    async def test() -> None:
        host = Host()
        for method in refused:
            answer = await ask(routed(host), method, path)
            assert answer.status == 405
            assert answer.headers["allow"] == allowed
            assert method == "HEAD" or f"use {allowed}" in answer.error
        asked = await ask(routed(host), "OPTIONS", path)
        assert (asked.status, asked.headers, asked.body) == (204, {"allow": allowed}, b"")
        host.batcher.close()

    run(test())


@pytest.mark.parametrize(
    "path",
    [
        "/", "//", "/v1", "/v2x", "//v2", "/v2//health/live", "/v2/health", "/v2/health/live/x", "/v2/models",
        "/v2/models/", "/v2/models/other", "/v2/models/other/infer", "/v2/models/adder/versions",
        "/v2/models/adder/versions/2", "/v2/models/adder/versions/2/infer", "/v2/models/adder/nothing",
        "/v2/models/adder/infer/more", "/v2/models/adder//infer", "/v2%2Fhealth%2Flive", "/v2/models/adder%2Finfer",
        "/v2/models/%zz", "/v2/models/%ff%fe", "/v2/models/%00", "/V2/health/live", "/-/metrics", "/%", "/v2/models/é",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_here_is_404(path: str, method: str) -> None:
    async def test() -> None:
        host = Host()
        answer = await ask(routed(host), method, path, BODY, scope={"path": path})
        assert answer.status == 404
        assert answer.error
        host.batcher.close()

    run(test())


def test_an_encoded_name_is_decoded() -> None:
    async def test() -> None:
        host = Host(model_name="my model/é")
        for path in ("/v2/models/my%20model%2F%C3%A9", "/v2/models/%6dy%20model%2f%c3%a9/"):
            assert (await ask(routed(host), "GET", path)).json()["name"] == "my model/é"
            answer = await ask(routed(host), "POST", path.rstrip("/") + "/infer", BODY)
            assert answer.json()["outputs"][0]["data"] == [6]
        host.batcher.close()

    run(test())


def test_servers_without_raw_path_and_route_prefixes() -> None:
    async def test() -> None:
        host = Host()
        app = routed(host)
        bare = {"path": INFER, "raw_path": None}
        assert (await ask(app, "POST", INFER, BODY, scope=bare)).status == 200
        prefixed = {"root_path": "/team/a", "path": "/team/a" + INFER, "raw_path": b"/team/a" + INFER.encode()}
        assert (await ask(app, "POST", "", BODY, scope=prefixed)).status == 200
        for wrong in ("/team", "/team/", "/te", ""):
            assert (await ask(app, "POST", "", BODY, scope=prefixed | {"root_path": wrong})).status == 404
        beside = prefixed | {"root_path": "/te", "path": "/team/v2", "raw_path": b"/team/v2"}
        assert (await ask(app, "GET", "", scope=beside)).status == 404
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "BREW", ""])
@settings(max_examples=60, deadline=None)
@given(
    parts=st.one_of(
        st.sampled_from([["v2", "models", "adder", "infer"], ["v2", "models", "%61dder", "infer", ""]]),
        st.lists(
            st.one_of(
                st.sampled_from(["v2", "models", "adder", "infer", "ready", "health", "live", "versions", "", "%2e"]),
                st.text(max_size=6), st.binary(max_size=4).map(lambda raw: raw.decode("latin-1")),
            ),
            max_size=7,
        ),
    ),
    body=st.one_of(st.binary(max_size=30), st.just(BODY)),
    headers=st.dictionaries(
        st.sampled_from(["content-length", HEADER_LENGTH, "content-encoding"]),
        st.text(st.characters(max_codepoint=255), max_size=6),
    ),
)  # fmt: skip
def test_garbage_is_answered_in_json_and_never_a_500(
    method: str, parts: list[str], body: bytes, headers: dict[str, str]
) -> None:
    path = "/" + "/".join(parts)

    async def test() -> None:
        host = Host()
        raw = path.encode("utf-8", "surrogateescape")
        answer = await ask(routed(host), method, "", body, headers, scope={"path": path, "raw_path": raw})
        assert answer.status < 500
        if answer.status != 200 and method != "HEAD":
            assert answer.error
        host.batcher.close()

    run(test())


def test_what_is_no_text_can_be_named_in_an_error() -> None:
    def model(inputs: Any) -> Any:
        raise InferenceFailed("half a character: \udcff")

    async def test() -> None:
        host = Host(model)
        answer = await ask(routed(host), "GET", "", scope={"path": "/\udcff\x00\n", "raw_path": None})
        assert answer.status == 404
        assert answer.error
        answer = await ask(routed(host), "POST", INFER, BODY)
        assert answer.status == 500
        assert answer.error == "half a character: ?"
        host.batcher.close()

    run(test())


def test_lifespan_and_web_sockets() -> None:
    async def test() -> None:
        host = Host()
        sent: list[str] = []
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await routed(host)({"type": "lifespan"}, receive, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        messages.append({"type": "websocket.connect"})
        await routed(host)({"type": "websocket", "path": INFER}, receive, send)
        assert sent[2:] == ["websocket.close"]
        host.batcher.close()

    run(test())


def test_each_platform_has_a_name() -> None:
    formats = type(variant()).model_fields["format"].annotation.__args__  # type: ignore[union-attr]
    assert set(answers.PLATFORMS) == set(formats)
