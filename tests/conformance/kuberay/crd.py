"""CRD + object -> problems in words: what an API server would say, without a cluster.

In its order: nulls are pruned, defaults applied, then the structural schema judges (strictly: an unknown field is an
error, as with `kubectl apply --validate=strict`), then lists that are maps or sets, then the CEL rules. Rules about
`oldSelf` concern updates and are left out. Root metadata is the API server's own: it is judged as a ConfigMap's.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.34"
"""The version whose own objects (Pod, PersistentVolumeClaim, ObjectMeta) are held to be valid."""
_BOUNDS = {"int32": 2**31, "int64": 2**63}
_INT_OR_STRING = "x-kubernetes-int-or-string"
_OPEN = "x-kubernetes-preserve-unknown-fields"


def load_yaml(text: str | bytes) -> list[dict[str, Any]]:
    """All documents of a YAML text; libyaml, because a CRD is a megabyte."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def core_problems(resource: dict[str, Any]) -> list[str]:
    """Problems of one of Kubernetes' own objects; empty if it is valid."""
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


class Crd:
    """One version of a CustomResourceDefinition."""

    def __init__(self, definition: dict[str, Any], version: str) -> None:
        spec = definition["spec"]
        found = next(v for v in spec["versions"] if v["name"] == version)
        self.api_version = f"{spec['group']}/{version}"
        self.kind: str = spec["names"]["kind"]
        self.schema: dict[str, Any] = found["schema"]["openAPIV3Schema"]
        strict = strict_schema(self.schema)
        strict["properties"]["metadata"] = {"type": "object"}
        strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
        jsonschema.Draft202012Validator.check_schema(strict)
        self._validator = jsonschema.Draft202012Validator(strict)

    def problems(self, resource: dict[str, Any]) -> list[str]:
        """What is wrong with `resource`, each with its path; empty if the API server would take it."""
        if (resource.get("apiVersion"), resource.get("kind")) != (self.api_version, self.kind):
            return [f"apiVersion, kind: this is no {self.api_version} {self.kind}"]
        prepared = apply_defaults(self.schema, prune_nulls(self.schema, resource))
        errors = self._validator.iter_errors(prepared)
        found = [f"{'.'.join(map(str, error.absolute_path)) or '(root)'}: {error.message}" for error in errors]
        # A schema error makes what follows it meaningless: the API server stops there, too.
        found = found or [*duplicates(self.schema, prepared), *broken_rules(self.schema, prepared)]
        metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": resource.get("metadata")}
        return found + core_problems(metadata)


@cache
def ray_service_crd() -> Crd:
    """KubeRay's RayService v1, from the file beside this one."""
    packed = Path(__file__).with_name("ray.io_rayservices.yaml.gz").read_bytes()
    return Crd(load_yaml(gzip.decompress(packed))[0], "v1")


def strict_schema(node: dict[str, Any]) -> dict[str, Any]:
    """Structural schema -> JSON schema in which a field that is not declared is an error."""
    plain = {key: value for key, value in node.items() if not key.startswith("x-kubernetes-")}
    plain.pop("default", None)
    if "properties" in node:
        plain["properties"] = {name: strict_schema(child) for name, child in node["properties"].items()}
    if "items" in node:
        plain["items"] = strict_schema(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        plain["additionalProperties"] = strict_schema(node["additionalProperties"])
    elif node.get("type") == "object" and "additionalProperties" not in node and not node.get(_OPEN):
        plain["additionalProperties"] = False
    if node.get("format") in _BOUNDS and not node.get(_INT_OR_STRING):
        bound = _BOUNDS[node["format"]]
        plain = {"minimum": -bound, "maximum": bound - 1} | plain
    if plain.pop("nullable", False):
        plain = {"anyOf": [{"type": "null"}, plain]}
    return plain


def _children(node: dict[str, Any], value: Any) -> Iterator[tuple[str | int, dict[str, Any], Any]]:
    if isinstance(value, dict):
        rest = node.get("additionalProperties")
        for name, child in value.items():
            below = node.get("properties", {}).get(name, rest)
            if isinstance(below, dict):
                yield name, below, child
    elif isinstance(value, list) and "items" in node:
        for index, child in enumerate(value):
            yield index, node["items"], child


def prune_nulls(node: dict[str, Any], value: Any) -> Any:
    """A copy without the nulls of fields that are not nullable."""
    if isinstance(value, list):
        return [prune_nulls(node.get("items", {}), child) for child in value]
    if not isinstance(value, dict):
        return value
    schemas = {str(name): below for name, below, _ in _children(node, value)}
    return {
        name: prune_nulls(schemas.get(name, {}), child)
        for name, child in value.items()
        if child is not None or schemas.get(name, {}).get("nullable")
    }


def apply_defaults(node: dict[str, Any], value: Any) -> Any:
    """`value` with the schema's defaults where a field is absent; changes it in place and returns it."""
    if isinstance(value, dict):
        for name, below in node.get("properties", {}).items():
            if name not in value and "default" in below:
                value[name] = deepcopy(below["default"])
    for _, below, child in _children(node, value):
        apply_defaults(below, child)
    return value


def duplicates(node: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Entries of a list that Kubernetes reads as a map or a set, named twice."""
    kind = node.get("x-kubernetes-list-type")
    if isinstance(value, list) and kind in ("map", "set"):
        keys = node.get("x-kubernetes-list-map-keys", [])
        seen = [repr([entry.get(key) for key in keys] if kind == "map" else entry) for entry in value]
        yield from (f"{path}: {key} is there twice" for key in sorted({k for k in seen if seen.count(k) > 1}))
    for name, below, child in _children(node, value):
        yield from duplicates(below, child, f"{path}.{name}".lstrip("."))


def broken_rules(node: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Messages of the CEL rules that `value` breaks."""
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and cel.evaluate(rule["rule"], {"self": value}) is not True:
            yield f"{path}: {rule.get('message', rule['rule'])}"
    for name, below, child in _children(node, value):
        yield from broken_rules(below, child, f"{path}.{name}".lstrip("."))
