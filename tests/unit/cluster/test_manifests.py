"""Plan -> RayService: the right Serve config, enough workers, and a clear error where bounds contradict each other."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster import manifests
from cluster.control.serve_config import serve_config
from cluster.control.serve_env import throughput_environment
from cluster.errors import ConfigError
from cluster.manifests import (
    KubernetesSettings,
    read_plan,
    render_direct_service,
    render_grpc_service,
    render_ray_service,
    to_yaml,
    worker_group,
)
from cluster.plans import Plan
from cluster.runtimes.base import RuntimeConfig


def make_plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "model_name": "classifier",
        "variant_id": "0123456789abcdef",
        "variant_name": "cnn/int8",
        "runtime": RuntimeConfig(threads=2),
        "store": "/home/someone/store",
        "num_replicas": 3,
        "num_cpus_per_replica": 2.0,
        "made_by": "test",
    }
    return Plan(**(fields | changes))


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["rayClusterConfig"]
    return found


def workers(manifest: dict[str, Any]) -> dict[str, Any]:
    (group,) = cluster_of(manifest)["workerGroupSpecs"]
    assert isinstance(group, dict)
    return group


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's pod, then the workers'."""
    return [group["template"]["spec"] for group in (cluster_of(manifest)["headGroupSpec"], workers(manifest))]


def test_the_serve_config_is_ours_but_for_the_path_of_the_store() -> None:
    plan = make_plan()
    inside = yaml.safe_load(render_ray_service(plan)["spec"]["serveConfigV2"])
    outside = serve_config(plan)
    assert inside["applications"][0]["args"].pop("store") == "/mnt/sluice/store"
    assert outside["applications"][0]["args"].pop("store") == "/home/someone/store"
    assert inside == outside


def test_a_port_of_ones_own_reaches_serve_the_pods_and_the_readiness_probe() -> None:
    manifest = render_ray_service(make_plan(), KubernetesSettings(http_port=9000))
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"])["http_options"] == {"host": "0.0.0.0", "port": 9000}
    for pod in pods(manifest):
        assert {"name": "serve", "containerPort": 9000} in pod["containers"][0]["ports"]
    assert "localhost:9000/-/healthz" in pods(manifest)[1]["containers"][0]["readinessProbe"]["exec"]["command"][-1]


def test_a_plan_with_a_port_of_the_replicas_own_has_a_service_before_it() -> None:
    assert render_direct_service(make_plan()) is None
    plan = make_plan().model_copy(update={"direct_port": 8010})
    service, manifest = render_direct_service(plan, KubernetesSettings(name="shop")), render_ray_service(
        plan, KubernetesSettings(name="shop")
    )
    assert service is not None
    assert service["metadata"]["name"] == "shop-direct"
    [port] = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8010, 8010)
    [group] = cluster_of(manifest)["workerGroupSpecs"]
    selected = dict(service["spec"]["selector"])
    assert selected.pop("ray.io/serve") == "true", "KubeRay's label of a pod whose proxy is well"
    assert selected.items() <= group["template"]["metadata"]["labels"].items()
    head, worker = pods(manifest)
    assert {"name": "direct", "containerPort": 8010} in worker["containers"][0]["ports"]
    assert {"name": "direct", "containerPort": 8010} not in head["containers"][0]["ports"]
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]["args"]["direct_port"] == 8010


def test_a_port_for_grpc_reaches_serve_the_pods_and_a_service_that_names_them_all() -> None:
    assert render_grpc_service() is None
    settings = KubernetesSettings(name="shop", grpc_port=9000)
    service, manifest = render_grpc_service(settings), render_ray_service(make_plan(), settings)
    assert service is not None
    assert service["metadata"]["name"] == "shop-grpc"
    assert service["spec"]["clusterIP"] == "None"
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(9000, 9000)]
    [group] = cluster_of(manifest)["workerGroupSpecs"]
    selected = dict(service["spec"]["selector"])
    assert selected.pop("ray.io/serve") == "true"
    assert selected.items() <= group["template"]["metadata"]["labels"].items()
    assert {"name": "grpc", "containerPort": 9000} in pods(manifest)[1]["containers"][0]["ports"]
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"])["grpc_options"]["port"] == 9000


@pytest.mark.parametrize("port", [0, 8000, 8080, 8265])
def test_a_port_for_grpc_that_the_pods_use_otherwise_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=f"grpc_port={port} is "):
        KubernetesSettings(grpc_port=port)


@pytest.mark.parametrize("port", [8000, 8080, 8265])
def test_a_port_that_the_pods_use_otherwise_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=f"direct_port={port} is "):
        render_direct_service(make_plan().model_copy(update={"direct_port": port}))


def test_head_and_workers_start_with_one_environment_and_one_image() -> None:
    manifest = render_ray_service(make_plan(), KubernetesSettings(image="registry.example/x:1", haproxy_threads=3))
    for pod in pods(manifest):
        (container,) = pod["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment == throughput_environment(haproxy_threads=3)
        assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == "3"
        assert container["image"] == "registry.example/x:1"


def test_replicas_run_on_workers_and_only_those_see_the_store() -> None:
    settings = KubernetesSettings(store_path="/data/store", store_claim="my-claim")
    manifest = render_ray_service(make_plan(), settings)
    assert cluster_of(manifest)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert manifest["spec"]["excludeHeadPodFromServeSvc"] is True
    head, worker = pods(manifest)
    assert "volumes" not in head
    assert worker["volumes"] == [
        {"name": "store", "persistentVolumeClaim": {"claimName": "my-claim", "readOnly": True}}
    ]
    assert worker["containers"][0]["volumeMounts"] == [
        {"name": "store", "mountPath": "/data/store", "readOnly": True}
    ]


def test_no_pod_runs_as_root_or_may_become_it() -> None:
    for pod in pods(render_ray_service(make_plan())):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_a_worker_pod_has_the_replicas_cores_and_one_for_ray_and_haproxy() -> None:
    manifest = render_ray_service(make_plan(num_cpus_per_replica=2.0), KubernetesSettings(worker_memory="512Mi"))
    assert workers(manifest)["rayStartParams"] == {"num-cpus": "2"}
    resources = pods(manifest)[1]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": "3", "memory": "512Mi"}, "limits": {"cpu": "3", "memory": "512Mi"}}


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_each_replica_on_a_gpu_has_one_in_a_pod_of_its_own(device: str) -> None:
    runtime = RuntimeConfig.model_validate({"device": device})
    manifest = render_ray_service(make_plan(runtime=runtime, num_replicas=3, num_cpus_per_replica=0.5))
    assert [workers(manifest)[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [3, 3, 3]
    assert workers(manifest)["rayStartParams"] == {"num-cpus": "1", "num-gpus": "1"}
    head, worker = (pod["containers"][0]["resources"] for pod in pods(manifest))
    assert [worker[bound]["nvidia.com/gpu"] for bound in ("requests", "limits")] == ["1", "1"]
    assert "nvidia.com/gpu" not in head["limits"], "the head runs no replica"
    inside = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    assert inside["applications"][0]["deployments"][0]["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 1}


def test_a_plan_on_the_cpu_asks_for_no_gpu() -> None:
    assert "gpu" not in to_yaml(render_ray_service(make_plan()))


def test_a_probe_has_time_for_each_of_its_commands() -> None:
    for pod in pods(render_ray_service(make_plan())):
        for name in ("livenessProbe", "readinessProbe"):
            probe = pod["containers"][0][name]
            command = probe["exec"]["command"][-1]
            assert probe["timeoutSeconds"] >= 2 * command.count("wget") == command.count("-T 2") * 2 > 0
            assert command.count("| grep success") == command.count("wget")


def test_a_new_plan_takes_over_by_a_new_cluster() -> None:
    assert render_ray_service(make_plan())["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


@pytest.mark.parametrize(
    ("num_replicas", "cpus", "expected"),
    [
        (1, 1.0, 1), (3, 1.0, 3), (2, 4.0, 2), (3, 1.5, 3),
        (3, 0.5, 2), (4, 0.25, 1), (10, 0.1, 1), (11, 0.1, 2), (7, 0.3, 3),
    ],
)  # fmt: skip
def test_as_many_workers_as_the_replicas_fill(num_replicas: int, cpus: float, expected: int) -> None:
    group = worker_group(make_plan(num_replicas=num_replicas, num_cpus_per_replica=cpus), KubernetesSettings())
    assert (group.min_replicas, group.replicas, group.max_replicas) == (expected,) * 3
    assert not group.is_elastic


@given(
    num_replicas=st.integers(1, 50),
    cpus=st.floats(0.01, 16.0),
    low=st.none() | st.integers(1, 60),
    high=st.none() | st.integers(1, 60),
)
def test_bounds_hold_the_replicas_or_are_refused(
    num_replicas: int, cpus: float, low: int | None, high: int | None
) -> None:
    plan = make_plan(num_replicas=num_replicas, num_cpus_per_replica=cpus)
    settings = KubernetesSettings(min_workers=low, max_workers=high)
    per_pod = int(math.ceil(cpus) / Fraction(round(cpus * 10_000), 10_000))  # Ray counts CPUs in ten-thousandths
    if high is not None and ((low or 1) > high or high * per_pod < num_replicas):
        with pytest.raises(ConfigError, match=f"max_workers={high}"):
            worker_group(plan, settings)
        return
    group = worker_group(plan, settings)
    assert 1 <= group.min_replicas <= group.replicas <= group.max_replicas
    assert group.min_replicas == low or low is None
    assert group.max_replicas == high or high is None
    assert group.replicas * per_pod >= num_replicas, "all of the plan's replicas have room"
    assert group.replicas == (low or 1) or (group.replicas - 1) * per_pod < num_replicas, "and no pod is there in vain"


def test_the_autoscaler_is_there_when_there_is_something_to_scale() -> None:
    still = render_ray_service(make_plan())
    assert "enableInTreeAutoscaling" not in cluster_of(still)
    moving = render_ray_service(make_plan(num_replicas=2), KubernetesSettings(max_workers=5))
    assert cluster_of(moving)["enableInTreeAutoscaling"] is True
    assert cluster_of(moving)["autoscalerOptions"] == {"version": "v2"}
    assert [workers(moving)[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [2, 2, 5]
    assert [pod["automountServiceAccountToken"] for pod in pods(moving)] == [True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_workers": 5, "max_workers": 4}, "min_workers=5 is above max_workers=4; lower the one or raise"),
        ({"max_workers": 2}, "max_workers=2 holds at most 2 replicas of 2 CPUs, the plan has .*=3; set .* to 3"),
        ({"min_workers": 0}, "min_workers=0 is below 1"),
        ({"max_workers": 0}, "max_workers=0 is below 1"),
        ({"head_cpus": 0}, "head_cpus=0 is below 1"),
        ({"haproxy_threads": 0}, "haproxy_threads=0 is below 1"),
        ({"name": "Sluice"}, "name='Sluice' is no RayService name"),
        ({"name": "1st"}, "name='1st' is no RayService name"),
        ({"name": "a" * 48}, "up to 47"),
        ({"name": "a-"}, "name='a-' is no RayService name"),
        ({"store_path": "store"}, "store_path='store' is not absolute"),
        ({"http_port": 0}, "http_port=0 is no TCP port; 8000"),
        ({"http_port": 65536}, "http_port=65536 is no TCP port; 8000"),
        ({"http_port": 8265}, "http_port=8265 is taken by dashboard"),
        ({"worker_memory": "4G"}, "worker_memory='4G' is no memory size; write it as 4Gi"),
        ({"head_memory": "0Gi"}, "head_memory='0Gi' is no memory size"),
    ],
)
def test_what_cannot_be_is_said_with_its_value_and_the_way_out(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render_ray_service(make_plan(), KubernetesSettings(**settings))


def test_the_longest_name_is_allowed() -> None:
    assert render_ray_service(make_plan(), KubernetesSettings(name="a" * 47))["metadata"]["name"] == "a" * 47


def test_yaml_says_the_same_and_keeps_the_serve_config_readable() -> None:
    manifest = render_ray_service(make_plan())
    text = to_yaml(manifest)
    assert yaml.safe_load(text) == manifest
    assert "  serveConfigV2: |\n    http_options:\n" in text
    assert "&id" not in text
    assert render_ray_service(make_plan()) == manifest


def test_a_plan_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json does not exist"):
        read_plan(tmp_path / "nowhere.json")
    bad = tmp_path / "bad.json"
    bad.write_text(make_plan().model_dump_json().replace('"num_replicas":3', '"num_replicas":0'))
    with pytest.raises(ConfigError, match=r"bad\.json is no plan: .*\n?.*num_replicas"):
        read_plan(bad)


def test_the_module_renders_a_plan_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(make_plan().model_dump_json())
    assert manifests.main([str(path)]) == 0
    assert capsys.readouterr().out == to_yaml(render_ray_service(make_plan()))
    assert manifests.main([str(tmp_path / "nowhere.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert manifests.main([]) == 2
    assert "usage: " in capsys.readouterr().err


def test_rendering_needs_neither_ray_nor_torch() -> None:
    code = "import sys, cluster.manifests; print({'ray', 'torch', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
