"""What of a plan reaches Ray's options of an actor; the whole config is deployed in tests/integration."""

from __future__ import annotations

import importlib

import pytest
from ray.serve.schema import ServeDeploySchema

from cluster.control.serve_config import serve_config
from cluster.plans import Plan
from cluster.runtimes import RuntimeConfig
from cluster.runtimes.base import Device
from serve_apps.deployment import UserConfig


@pytest.mark.parametrize(("device", "gpus"), [("cpu", None), ("cuda", 1), ("tensorrt", 1)])
def test_a_replica_asks_for_a_gpu_where_its_runtime_computes_on_one(device: Device, gpus: int | None) -> None:
    plan = Plan(
        model_name="m", variant_id="0" * 16, variant_name="v", store="/store", made_by="test",
        runtime=RuntimeConfig(device=device), num_cpus_per_replica=2,
    )  # fmt: skip
    (application,) = serve_config(plan)["applications"]
    (deployment,) = application["deployments"]
    asked = {"num_cpus": 2.0} if gpus is None else {"num_cpus": 2.0, "num_gpus": gpus}
    assert deployment["ray_actor_options"] == asked


@pytest.mark.parametrize("repository", [False, True])
def test_clients_may_load_and_unload_only_where_the_plan_says_so(repository: bool) -> None:
    plan = Plan(
        model_name="m", variant_id="0" * 16, variant_name="v", store="/store", made_by="test", runtime=RuntimeConfig(),
        repository=repository,
    )  # fmt: skip
    (application,) = serve_config(plan)["applications"]
    user_config = UserConfig.model_validate(application["deployments"][0]["user_config"])
    assert user_config.repository is repository
    assert user_config.loaded


def test_ray_takes_the_grpc_options_and_finds_what_they_name() -> None:
    plan = Plan(
        model_name="m", variant_id="0" * 16, variant_name="v", store="/store", made_by="test", runtime=RuntimeConfig()
    )
    options = ServeDeploySchema.model_validate(serve_config(plan, grpc_port=9000)).grpc_options
    assert options.port == 9000
    (name,) = options.grpc_servicer_functions
    module, _, function = name.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert not ServeDeploySchema.model_validate(serve_config(plan)).grpc_options.grpc_servicer_functions
