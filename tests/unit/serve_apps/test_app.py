"""`build(args)`: an application out of good args, a named field out of bad ones, and nothing at import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from serve_apps.app import build

GOOD: dict[str, Any] = {"store": "/tmp/no-such-store", "variant": "cnn/int8"}


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({}, "store: Field required; variant: Field required"),
        (GOOD | {"store": ""}, "store='':"),
        (GOOD | {"variant": 7}, "variant='7': Input should be a valid string"),
        (GOOD | {"replicas": 2}, "replicas='2': Extra inputs are not permitted"),
        (GOOD | {"runtime": {"name": "tpu"}}, "runtime.name='tpu':"),
        (GOOD | {"runtime": {"threads": 0}}, "runtime.threads='0':"),
        (GOOD | {"model_name": "a/b"}, "model_name='a/b':"),
        (GOOD | {"model_name": ".."}, "model_name='..':"),
        (GOOD | {"model_name": ""}, "model_name='':"),
        (GOOD | {"model_name": "x" * 99 + "/"}, "model_name='xxx"),
        (["store"], "args="),
        (None, "args="),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_the_way_out(args: Any, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(args)
    message = str(error.value)
    assert complaint in message
    assert "the fields are model_name, store, variant, runtime" in message
    assert "errors.pydantic.dev" not in message
    assert len(message) < 600


def test_the_parts_that_need_no_ray_load_none_and_nothing_ever_loads_torch() -> None:
    code = """
import sys, threading
import serve_apps.oip.codec, serve_apps.oip.routes, serve_apps.batcher, serve_apps.app
heavy = {"ray", "torch", "onnxruntime", "openvino", "starlette", "uvicorn"} & set(sys.modules)
print(sorted(heavy), threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 1"


def test_build_touches_neither_store_nor_cluster(tmp_path: Path) -> None:
    """In a process of its own: Serve must not have been started, nor the store been made or opened."""
    store = tmp_path / "store"
    code = f"""
import os, sys, ray
from ray.serve import Application
from serve_apps.app import build
app = build({{"store": {str(store)!r}, "variant": "cnn/int8", "model_name": "m", "runtime": {{"threads": 2}}}})
assert isinstance(app, Application), app
assert not ray.is_initialized()
print(app._bound_deployment.name, *app._bound_deployment.init_args[:3], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ModelDeployment", "m", str(store), "cnn/int8", "False"]
    assert not store.exists()
    assert list(tmp_path.iterdir()) == []
