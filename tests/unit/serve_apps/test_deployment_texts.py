"""A model of BYTES behind the protocol: text goes in and comes out by JSON, by binary data, and out of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError
from serve_apps.deployment import ModelHost
from serve_apps.oip.codec import decode_response, encode_request
from serve_apps.oip.routes import OipApp
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.graphs import words
from tests.unit.serve_apps.oip.served import ask

# Serve awaits a deployment's `async __del__`; Python, which collects a host at the end of its test, does not.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'ModelHost.__del__' was never awaited")
INFER = "/v2/models/m/infer"
WORDS = np.array([["größer".encode(), b""], [b"nul\0", b"null"]], object)


def test_text_comes_back_as_it_went(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    async def test() -> None:
        host = ModelHost("m", str(store.root), words(store).id, {"name": "onnxruntime"})
        await host.reconfigure({"cache_mib": 1})
        app = OipApp(lambda: host)
        assert (await ask(app, "GET", "/v2/models/m")).json()["inputs"][0]["datatype"] == "BYTES"
        for binary in (False, True):
            for binary_output in (False, True, True):  # the second one is known by its head and its inputs
                body, headers = encode_request({"x": WORDS}, binary=binary, binary_output=binary_output)
                answer = await ask(app, "POST", INFER, body, headers)
                assert answer.status == 200, answer.body
                assert decode_response(answer.body, answer.headers)["y"].tolist() == WORDS.tolist()
        body, headers = encode_request({"x": WORDS[::-1]}, binary=True)
        answer = await ask(app, "POST", INFER, body, headers)
        assert orjson.loads(answer.body)["outputs"][0]["data"] == ["nul\0", "null", "größer", ""]
        await host.__del__()

    run(test())


def test_bytes_that_are_no_text_are_the_client_s_mistake_where_the_model_takes_text(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    async def test() -> None:
        host = ModelHost("m", str(store.root), words(store).id, {"name": "onnxruntime"})
        await host.reconfigure({})
        body, headers = encode_request({"x": np.array([[b"\xff", b"a"]], object)}, binary=True)
        answer = await ask(OipApp(lambda: host), "POST", INFER, body, headers)
        assert (answer.status, "b'\\xff', which is no UTF-8" in answer.error) == (400, True)
        for name, body in (("picture", "image/png"), ("raw", "application/octet-stream")):
            answer = await ask(OipApp(lambda: host), "POST", INFER, b"\x89PNG", {"content-type": body})
            assert (name, answer.status) == (name, 400)
        await host.__del__()

    run(test())


def test_a_runtime_that_computes_numbers_only_says_so(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    async def test() -> None:
        host = ModelHost("m", str(store.root), words(store).id, {"name": "openvino"})
        with pytest.raises(ConfigError, match=r"BYTES tensors \['x', 'y'\].*onnxruntime on the CPU"):
            await host.reconfigure({})

    run(test())
