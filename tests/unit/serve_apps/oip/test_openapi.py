"""The description is of what is served: each path of it answers, each example is answered, each schema fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest

from cluster.variants import TensorSpec
from serve_apps.oip.openapi import describe, example
from serve_apps.oip.routes import OipApp
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.oip.served import Host, ask, variant

OF_THE_SPECIFICATION = [
    ("get", "/v2"), ("get", "/v2/health/live"), ("get", "/v2/health/ready"), ("get", "/v2/models/adder"),
    ("get", "/v2/models/adder/versions/{version}"), ("get", "/v2/models/adder/ready"),
    ("get", "/v2/models/adder/versions/{version}/ready"), ("post", "/v2/models/adder/infer"),
    ("post", "/v2/models/adder/versions/{version}/infer"),
]  # fmt: skip


def operations(api: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in api["paths"].items():
        for verb in ("get", "post"):
            if verb in item:
                yield verb, path, item[verb]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "$ref":
                yield each
            else:
                yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def resolved(api: dict[str, Any], part: dict[str, Any]) -> Any:
    found: Any = part
    while "$ref" in found:
        target, found = found["$ref"], api
        for key in target.removeprefix("#/").split("/"):
            found = found[key]
    return found


def check(api: dict[str, Any], value: Any, schema: dict[str, Any]) -> None:
    """Of what is used here, OpenAPI 3.0 means what JSON Schema does."""
    jsonschema.validate(value, {**schema, "components": api["components"]}, cls=jsonschema.Draft4Validator)


def test_every_operation_answers_as_it_says() -> None:
    async def test() -> None:
        host = Host()
        app = OipApp(lambda: host)
        api = (await ask(app, "GET", "/v2/openapi.json")).json()
        assert api == orjson.loads(orjson.dumps(describe(host)))
        listed = [(verb, path) for verb, path, _ in operations(api)]
        assert set(OF_THE_SPECIFICATION) <= set(listed)
        for verb, path, operation in operations(api):
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            asked = b"" if not body else orjson.dumps(body["example"])
            if body:
                check(api, body["example"], body["schema"])
            answer = await ask(app, verb.upper(), path.replace("{version}", host.variant.id), asked)
            assert answer.status == 200, (path, answer.body)
            said = operation["responses"]["200"].get("content", {}).get("application/json")
            if said is not None:
                check(api, answer.json(), said["schema"])
            for method in ("GET", "POST"):
                if (method.lower(), path) not in listed:
                    other = await ask(app, method, path.replace("{version}", host.variant.id))
                    assert other.status == 405, path
        assert host.asked == [("load", {}), ("unload", {})]
        host.batcher.close()

    run(test())


def test_refusals_are_described() -> None:
    async def test() -> None:
        host = Host()
        app = OipApp(lambda: host)
        api = describe(host)
        host.ready = False
        for path, body in (
            ("/v2/health/ready", None), ("/v2/models/adder/ready", None), ("/v2/models/adder/infer", b"{}"),
            ("/v2/models/adder/versions/{version}/infer", b"{"), ("/v2/repository/index", b"[]"),
        ):  # fmt: skip
            verb = "get" if body is None else "post"
            answer = await ask(app, verb.upper(), path.replace("{version}", host.variant.id), body or b"")
            assert answer.status in (400, 503)
            response = resolved(api, api["paths"][path][verb]["responses"][str(answer.status)])
            check(api, answer.json(), response["content"]["application/json"]["schema"])
        host.batcher.close()

    run(test())


def test_nothing_in_it_points_nowhere_and_every_path_parameter_is_told() -> None:
    async def test() -> None:
        host = Host()
        api = describe(host, "/team/a")
        assert api["servers"] == [{"url": "/team/a"}]
        for reference in references(api):
            resolved(api, {"$ref": reference})
        for _, path, _ in operations(api):
            told = {each["name"] for each in api["paths"][path].get("parameters", [])}
            assert told == set(re.findall("{(.*?)}", path))
        tags = [tag["name"] for tag in api["tags"]]
        assert all(set(operation["tags"]) <= set(tags) for _, _, operation in operations(api))
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("shape", [(-1, 3), (-1, 2, -1), (-1,)])
@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "FP64", "BYTES"])
def test_the_example_of_any_model_is_answered(datatype: Any, shape: tuple[int, ...]) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=shape)
    output = TensorSpec(name="rows", datatype="INT64", shape=(-1,))

    def rows(inputs: Any) -> Any:
        return {"rows": np.arange(len(inputs["x"]))}

    async def test() -> None:
        host = Host(rows)
        host.serve(variant(inputs=(spec,), outputs=(output,)), rows)
        given = example(host.variant)
        answer = await ask(OipApp(lambda: host), "POST", "/v2/models/adder/infer", orjson.dumps(given))
        assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [0]), answer.body
        host.batcher.close()

    run(test())


def test_pictures_are_offered_where_the_model_takes_them_and_a_large_example_is_not_written_out() -> None:
    async def test() -> None:
        host = Host()
        path = "/v2/models/adder/infer"
        assert "image/png" not in describe(host)["paths"][path]["post"]["requestBody"]["content"]
        spec = TensorSpec(name="image", datatype="UINT8", shape=(-1, 3, 224, 224))
        host.serve(variant(inputs=(spec,)))
        content = describe(host)["paths"][path]["post"]["requestBody"]["content"]
        assert {"image/png", "image/jpeg"} <= set(content)
        assert "example" not in content["application/json"]
        host.batcher.close()

    run(test())


def test_it_is_there_while_nothing_is_served() -> None:
    async def test() -> None:
        host = Host()
        host.served, host.unavailable = None, "unloaded"
        api = (await ask(OipApp(lambda: host), "GET", "/v2/openapi.json")).json()
        assert (api["x-model"]["inputs"], api["x-model"]["versions"]) == ([], [])
        assert set(OF_THE_SPECIFICATION) <= {(verb, path) for verb, path, _ in operations(api)}
        for reference in references(api):
            resolved(api, {"$ref": reference})
        host.batcher.close()

    run(test())
