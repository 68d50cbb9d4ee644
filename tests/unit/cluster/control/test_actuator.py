"""What a dashboard says -> Deployed, and the config that goes back.

On a real cluster: tests/integration/test_promote.py.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.control import actuator
from cluster.control.serve_config import serve_config
from cluster.errors import ClusterError, ConfigError
from cluster.plans import Plan
from cluster.runtimes import RuntimeConfig
from serve_apps.deployment import UserConfig

OPENVINO = {"name": "openvino", "threads": 2, "inter_op_threads": 1, "streams": 1}
FOREIGN = {"name": "theirs", "import_path": "their.app:app", "deployments": [{"name": "Web"}]}


def submitted(name: str = "classifier") -> dict[str, Any]:
    plan = Plan(
        model_name=name, variant_id="0" * 16, variant_name="v", runtime=RuntimeConfig(), store="/store", made_by="test",
        max_batch_size=8, default_timeout_s=1.5,
    )  # fmt: skip
    return dict(serve_config(plan)["applications"][0])


def details(*applications: dict[str, Any], host: str = "0.0.0.0") -> dict[str, Any]:
    """As Ray 2.60 tells it, shortened."""
    replicas = [{"state": "RUNNING", "pid": 1}, {"state": "RUNNING", "pid": 2}]
    return {
        "proxy_location": "EveryNode", "http_options": {"host": host, "port": 8000, "root_path": ""},
        "grpc_options": {"port": 9000}, "target_capacity": 50.0,
        "target_groups": [
            {"protocol": "HTTP", "route_prefix": "/", "targets": [{"ip": "10.0.0.7", "port": 8000}]},
            {"protocol": "gRPC", "route_prefix": "/", "targets": [{"ip": "10.0.0.7", "port": 9000}]},
        ],
        "applications": {
            "imperative": {"status": "RUNNING", "deployed_app_config": None, "deployments": {}},
            **{
                each["name"]: {
                    "status": "RUNNING", "deployed_app_config": each,
                    "deployments": {"ModelDeployment": {"replicas": replicas}},
                }
                for each in applications
            },
        },
    }  # fmt: skip


@pytest.fixture
def dashboard() -> Iterator[tuple[str, dict[str, Any]]]:
    """Its address, and what it says."""
    said: dict[str, Any] = {}

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(said).encode()
            self.send_response(200 if self.path == "/api/serve/applications/" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", said
        server.shutdown()


def test_what_is_deployed_is_read(dashboard: tuple[str, dict[str, Any]]) -> None:
    address, said = dashboard
    said |= details(submitted(), FOREIGN)
    deployed = actuator.read(address, "classifier")
    assert (deployed.name, deployed.store) == ("classifier", "/store")
    assert deployed.variant == deployed.bound == "0" * 16
    assert (deployed.runtime, deployed.max_batch_size, deployed.num_replicas) == (RuntimeConfig(), 8, 2)
    assert deployed.urls == ("http://10.0.0.7:8000",)
    assert deployed.config["applications"] == [submitted(), FOREIGN]
    assert deployed.config["target_capacity"] == 50.0


def test_the_user_config_comes_before_the_args(dashboard: tuple[str, dict[str, Any]]) -> None:
    address, said = dashboard
    application = submitted() | {"route_prefix": "/models"}
    application["deployments"][0]["user_config"] |= {"variant": "1" * 16, "runtime": OPENVINO}
    said |= details(application)
    deployed = actuator.read(address, "classifier")
    assert (deployed.variant, deployed.bound) == ("1" * 16, "0" * 16)
    assert deployed.runtime == RuntimeConfig(name="openvino", threads=2)
    assert deployed.urls == ("http://10.0.0.7:8000/models",)


@pytest.mark.parametrize(
    ("host", "address", "urls"),
    [
        ("0.0.0.0", "http://head:8265", ["http://10.0.0.7:8000"]),
        ("127.0.0.1", "http://127.0.0.1:8265", ["http://127.0.0.1:8000"]),
        ("127.0.0.1", "http://head:8265", []),
        ("10.0.0.9", "http://head:8265", ["http://10.0.0.9:8000"]),
    ],
)
def test_proxies_are_asked_where_they_can_be_reached(host: str, address: str, urls: list[str]) -> None:
    """What listens on our own loopback is not the proxy of another machine."""
    assert actuator._proxies(address, details(host=host)) == urls


def test_only_the_variant_of_the_one_application_changes(dashboard: tuple[str, dict[str, Any]]) -> None:
    address, said = dashboard
    said |= details(submitted(), submitted("other"), FOREIGN)
    deployed = actuator.read(address, "classifier")
    before = copy.deepcopy(dict(deployed.config))
    changed = deployed.with_variant("1" * 16)
    assert deployed.config == before
    [user_config] = [each["user_config"] for each in changed["applications"][0]["deployments"]]
    assert user_config == before["applications"][0]["deployments"][0]["user_config"] | {"variant": "1" * 16}
    assert UserConfig.model_validate(user_config).variant == "1" * 16
    user_config.pop("variant")
    assert changed == before


def test_what_a_client_unloaded_is_not_switched(dashboard: tuple[str, dict[str, Any]]) -> None:
    address, said = dashboard
    application = submitted()
    application["deployments"][0]["user_config"]["loaded"] = False
    said |= details(application)
    with pytest.raises(ConfigError, match=r"classifier at .* is unloaded; load it first"):
        actuator.switch(actuator.read(address, "classifier"), "1" * 16)


def test_an_application_without_user_config_gets_one(dashboard: tuple[str, dict[str, Any]]) -> None:
    address, said = dashboard
    application = submitted()
    application["deployments"][0]["user_config"] = None
    said |= details(application)
    changed = actuator.read(address, "classifier").with_variant("1" * 16)
    assert changed["applications"][0]["deployments"][0]["user_config"] == {"variant": "1" * 16}


def test_what_is_not_ours_or_not_there_is_told(dashboard: tuple[str, dict[str, Any]]) -> None:
    address, said = dashboard
    said |= details(submitted(), FOREIGN)
    for name in ("theirs", "imperative", "nobody"):
        with pytest.raises(ConfigError, match="it has classifier"):
            actuator.read(address, name)
    with pytest.raises(ClusterError, match="does not answer"):
        actuator.read(f"{address}elsewhere", "classifier")
    said.clear()
    with pytest.raises(ClusterError, match="does not answer"):
        actuator.read_all(address)
