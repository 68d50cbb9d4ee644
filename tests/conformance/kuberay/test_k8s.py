"""What is in k8s/, and whatever the renderer makes of a plan, is what Kubernetes, KubeRay and Serve accept."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.control.serve_config import serve_config
from cluster.manifests import (
    IMAGE,
    RAY_VERSION,
    KubernetesSettings,
    read_plan,
    render_ray_service,
    to_yaml,
)
from cluster.plans import Plan
from cluster.runtimes.base import RuntimeConfig
from tests.conformance.kuberay.crd import core_problems, load_yaml, ray_service_crd

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"
OBJECTS = sorted(set(K8S.glob("*.yaml")) - {K8S / "kustomization.yaml"})


def problems(document: dict[str, Any]) -> list[str]:
    """Of any object: a RayService by its CRD and its pods as Pods, everything else as Kubernetes' own."""
    if document["kind"] != "RayService":
        return core_problems(document)
    cluster = document["spec"]["rayClusterConfig"]
    found = ray_service_crd().problems(document)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": group["template"]["spec"]}
        found += core_problems(pod)
    return found


def one(path: Path) -> dict[str, Any]:
    (document,) = load_yaml(path.read_text())
    return document


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_every_object_is_valid(path: Path) -> None:
    assert problems(one(path)) == []


def test_the_committed_manifest_equals_its_renderer() -> None:
    rendered = to_yaml(render_ray_service(read_plan(K8S / "example-plan.json")))
    assert (K8S / "ray-service.yaml").read_text() == rendered, (
        "k8s/ray-service.yaml is stale: python -m cluster.manifests k8s/example-plan.json > k8s/ray-service.yaml"
    )


@given(
    num_replicas=st.integers(1, 40),
    cpus=st.floats(0.05, 64.0),
    threads=st.integers(1, 64),
    timeout_s=st.none() | st.floats(0.001, 100.0),
    text=st.text(max_size=20),
    extra=st.integers(0, 5),
    port=st.sampled_from([80, 8000, 9000]),
)
@settings(max_examples=30, deadline=None)
def test_whatever_is_rendered_is_valid_and_parses_as_a_serve_config(
    num_replicas: int, cpus: float, threads: int, timeout_s: float | None, text: str, extra: int, port: int
) -> None:
    from ray.serve.schema import ServeDeploySchema

    plan = Plan(
        model_name="classifier", variant_id=text, variant_name=text, runtime=RuntimeConfig(threads=threads), store="/s",
        num_replicas=num_replicas, num_cpus_per_replica=cpus, default_timeout_s=timeout_s, made_by=text,
    )  # fmt: skip
    manifest = render_ray_service(plan, KubernetesSettings(http_port=port, max_workers=num_replicas + extra))
    written = one_of(to_yaml(manifest))
    assert written == manifest
    assert problems(written) == []
    config = yaml.safe_load(written["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    assert schema.http_options.port == port
    (application,) = schema.applications
    assert application.args["variant"] == text
    assert application.deployments[0].num_replicas == num_replicas


def one_of(text: str) -> dict[str, Any]:
    (document,) = load_yaml(text)
    return document


def test_serve_accepts_the_committed_config_and_our_application_its_arguments() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps.app import AppArgs
    from serve_apps.deployment import UserConfig

    config = yaml.safe_load(one(K8S / "ray-service.yaml")["spec"]["serveConfigV2"])
    assert config == serve_config(read_plan(K8S / "example-plan.json"))
    (application,) = ServeDeploySchema.model_validate(config).applications
    AppArgs.model_validate(application.args)
    UserConfig.model_validate(application.deployments[0].user_config)


def test_the_claim_the_loader_and_the_workers_mean_the_same_volume_and_image() -> None:
    defaults = KubernetesSettings()
    service, loader = one(K8S / "ray-service.yaml"), one(K8S / "store-loader.yaml")
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    assert one(K8S / "store-pvc.yaml")["metadata"]["name"] == defaults.store_claim
    assert read_plan(K8S / "example-plan.json").store == defaults.store_path
    for pod in (worker, loader["spec"]):
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == defaults.store_claim
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == defaults.store_path
        assert pod["containers"][0]["image"] == IMAGE
        assert pod["securityContext"]["runAsUser"] == 1000


def test_the_kustomization_names_files_that_exist_and_the_image_that_is_used() -> None:
    kustomization = one(K8S / "kustomization.yaml")
    assert (kustomization["apiVersion"], kustomization["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert set(kustomization) <= {"apiVersion", "kind", "resources", "images"}
    kinds = [one(K8S / name)["kind"] for name in kustomization["resources"]]
    assert sorted(kinds) == ["PersistentVolumeClaim", "RayService"]
    (image,) = kustomization["images"]
    assert f"{image['name']}:{image['newTag']}" == f"{image['newName']}:{image['newTag']}" == IMAGE


def test_kustomize_builds_it_and_puts_your_image_into_every_pod(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH; the kustomization itself is checked by the test above")
    sources = {doc["kind"]: doc for doc in (one(K8S / "store-pvc.yaml"), one(K8S / "ray-service.yaml"))}
    folder = tmp_path / "k8s"
    shutil.copytree(K8S, folder)
    for name in ("ghcr.io/your-org/sluice", "registry.example/team/sluice"):
        text = (K8S / "kustomization.yaml").read_text().replace("newName: ghcr.io/your-org/sluice", f"newName: {name}")
        (folder / "kustomization.yaml").write_text(text)
        done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        built = {doc["kind"]: doc for doc in load_yaml(done.stdout)}
        expected = json.loads(json.dumps(sources).replace("ghcr.io/your-org/sluice:", f"{name}:"))
        assert built == expected
        assert [problems(document) for document in built.values()] == [[], []]


@cache
def dockerfile() -> str:
    return (K8S / "Dockerfile").read_text()


def test_one_version_of_ray_and_python_everywhere() -> None:
    assert f"\nray=={RAY_VERSION}\n" in (ROOT / "constraints.txt").read_text()
    assert re.findall(r"^FROM (\S+)$", dockerfile(), re.MULTILINE) == [f"rayproject/ray:{RAY_VERSION}-py311"]
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
    assert one(K8S / "ray-service.yaml")["spec"]["rayClusterConfig"]["rayVersion"] == RAY_VERSION


def test_the_image_copies_what_there_is_and_the_ignore_file_lets_it_through() -> None:
    let_through = (K8S / "Dockerfile.dockerignore").read_text().splitlines()
    copied: list[str] = []
    for line in re.findall(r"^COPY --chown=1000:100 (.+)$", dockerfile(), re.MULTILINE):
        copied += line.split()[:-1]
    assert {"constraints.txt", "pyproject.toml", "cluster", "serve_apps"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in let_through
    assert dockerfile().rstrip().endswith("USER 1000")


def test_the_image_installs_exactly_what_a_replica_imports() -> None:
    imported = re.search(r'python -c "(import [^"]+)"', dockerfile())
    assert imported, "the Dockerfile proves its own imports"
    loaded = "[m.__file__ for m in sys.modules.values() if m.__name__.split('.')[0] in ('cluster', 'serve_apps')]"
    # The gRPC port's part is imported when Serve opens that port.
    code = (
        f"{imported.group(1)}, serve_apps.front.grpc_ingress, sys, json; "
        f"print(json.dumps([file for file in {loaded} if file]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    files = [Path(name) for name in json.loads(done.stdout.splitlines()[-1])]
    assert ROOT / "serve_apps/deployment.py" in files
    modules: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    foreign = modules - sys.stdlib_module_names - {"cluster", "serve_apps"}
    names = packages_distributions()
    needed = {names[module][0].lower() for module in foreign - {"google"}} | {"protobuf"}  # one of many in google
    lines = (K8S / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[\[=<>]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    assert required == needed
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert required <= pinned
