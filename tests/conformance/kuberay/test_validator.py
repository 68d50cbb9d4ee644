"""The validator itself: it takes what KubeRay ships, and finds each way of breaking it."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.kuberay.crd import Crd, apply_defaults, core_problems, load_yaml, prune_nulls, ray_service_crd

HERE = Path(__file__).parent
SAMPLES = sorted((HERE / "samples").glob("*.yaml"))
Break = Callable[[dict[str, Any]], None]


def sample(name: str = "ray-service.sample.yaml") -> dict[str, Any]:
    return load_yaml((HERE / "samples" / name).read_text())[0]


def worker(service: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    return group


def container(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = worker(service)["template"]["spec"]["containers"][0]
    return found


def test_the_crd_is_the_one_that_the_readme_names() -> None:
    digest = hashlib.sha256(gzip.decompress((HERE / "ray.io_rayservices.yaml.gz").read_bytes())).hexdigest()
    assert digest == "0a8fc325e6e22b9231c1f282b309555e2ecf94227ca20a03df3d1d9a403907ab"
    assert digest in (HERE / "README.md").read_text()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_kuberays_own_samples_are_accepted(path: Path) -> None:
    services, others = [], []
    for document in load_yaml(path.read_text()):
        (services if document["kind"] == "RayService" else others).append(document)
    assert services
    for service in services:
        assert ray_service_crd().problems(service) == []
    for other in others:
        assert core_problems(other) == []


def test_there_are_samples() -> None:
    assert len(SAMPLES) == 3


BREAKS: dict[str, tuple[Break, str]] = {
    "unknown field at the top": (lambda s: s.update(extra=1), "'extra' was unexpected"),
    "unknown field of the spec": (lambda s: s["spec"].update(serveConfigV3="x"), "'serveConfigV3' was unexpected"),
    "unknown field deep in a pod": (lambda s: container(s).update(imagee="x"), "'imagee' was unexpected"),
    "unknown field of the metadata": (lambda s: s["metadata"].update(title="x"), "'title' was unexpected"),
    "replicas as text": (lambda s: worker(s).update(replicas="2"), "'2' is not of type 'integer'"),
    "replicas beyond int32": (lambda s: worker(s).update(replicas=2**31), "greater than the maximum"),
    "env value as number": (lambda s: container(s).update(env=[{"name": "A", "value": 1}]), "1 is not of type"),
    "memory that is no quantity": (
        lambda s: container(s)["resources"]["limits"].update(memory="much"),
        "spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory: ",
    ),
    "no cluster": (lambda s: s["spec"].pop("rayClusterConfig"), "'rayClusterConfig' is a required property"),
    "a group without a name": (lambda s: worker(s).pop("groupName"), "'groupName' is a required property"),
    "no spec": (lambda s: s.pop("spec"), "'spec' is a required property"),
    "an enum's stranger": (
        lambda s: s["spec"]["rayClusterConfig"].update(authOptions={"mode": "maybe"}),
        "'maybe' is not one of",
    ),
    "the same variable twice": (
        lambda s: container(s).update(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        "['A'] is there twice",
    ),
    "the same port twice": (
        lambda s: container(s).update(ports=[{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]),
        "[1, 'TCP'] is there twice",
    ),
    "a CEL rule": (lambda s: s["spec"].update(managedBy="me"), "the managedBy field value must be either"),
    "a CEL rule further down": (
        lambda s: s["spec"]["rayClusterConfig"].update(managedBy="me"),
        "spec.rayClusterConfig.managedBy: the managedBy field value must be either",
    ),
    "another kind": (lambda s: s.update(kind="RayJob"), "this is no ray.io/v1 RayService"),
    "another version": (lambda s: s.update(apiVersion="ray.io/v1alpha1"), "this is no ray.io/v1 RayService"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_sample_is_rejected_for_its_own_reason(name: str) -> None:
    broken = sample()
    breaks, expected = BREAKS[name]
    breaks(broken)
    problems = ray_service_crd().problems(broken)
    assert len(problems) == 1, problems
    assert expected in problems[0]


def test_a_rule_that_holds_says_nothing() -> None:
    service = sample()
    service["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    assert ray_service_crd().problems(service) == []


def test_nulls_go_before_defaults_come_and_the_object_itself_is_left_alone() -> None:
    service = sample()
    worker(service).update(minReplicas=None, idleTimeoutSeconds=None)
    before = deepcopy(service)
    schema = ray_service_crd().schema
    prepared = apply_defaults(schema, prune_nulls(schema, service))
    assert worker(prepared)["minReplicas"] == 0
    assert "idleTimeoutSeconds" not in worker(prepared)
    assert ray_service_crd().problems(service) == []
    assert service == before


def test_nullable_open_and_set_as_a_small_crd_declares_them() -> None:
    # RayService uses none of these; a validator that ignored them would be wrong for the next CRD.
    spec = {
        "type": "object",
        "properties": {
            "maybe": {"type": "string", "nullable": True},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "names": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "low": {"type": "integer"},
        },
        "x-kubernetes-validations": [
            {"rule": "!has(self.low) || self.low < size(self.names)"},
            {"rule": "oldSelf == 1"},
        ],
    }
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("apiVersion", "kind")}
        | {"metadata": {"type": "object"}, "spec": spec},
    }
    crd = Crd(
        {
            "spec": {
                "group": "example.com",
                "names": {"kind": "Small"},
                "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}],
            }
        },
        "v1",
    )
    small = {"apiVersion": "example.com/v1", "kind": "Small", "metadata": {"name": "a"}}
    good = {"maybe": None, "open": {"any": ["thing"]}, "names": ["a", "b"], "low": 1}
    assert crd.problems(small | {"spec": good}) == []
    assert crd.problems(small | {"spec": good | {"names": ["a", "a"]}}) == ["spec.names: 'a' is there twice"]
    assert crd.problems(small | {"spec": good | {"low": 2}}) == ["spec: !has(self.low) || self.low < size(self.names)"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"spec": {"accessMode": []}}, "'accessMode' was unexpected"), ({"spec": {"accessModes": "x"}}, "not of type")],
)
def test_core_objects_are_judged_strictly(change: dict[str, Any], expected: str) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"}}
    assert core_problems(claim) == []
    assert expected in core_problems(claim | change)[0]
