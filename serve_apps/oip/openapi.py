"""A host -> the OpenAPI description of what it serves: its model's names, shapes and datatypes, and examples that work.

Paths name the model that is served, so whoever reads the description can ask without filling anything in. What JSON
Schema cannot say (that `data` has as many values as `shape` says) stands in words.
"""

from __future__ import annotations

import math
from typing import Any

from cluster.errors import InvalidRequest, NotReady
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec, Variant
from serve_apps.images import picture_input
from serve_apps.oip import answers
from serve_apps.oip.answers import ModelHost
from serve_apps.oip.codec import MAX_JSON_BYTES
from serve_apps.oip.served import Served
from serve_apps.oip.wishes import ACCURACIES

Json = dict[str, Any]
_MAX_EXAMPLE = 4096
"""Values in an example; larger tensors have none."""
_STATUSES = {
    200: "OK",
    400: "What is wrong with the request, its value, and what would be right",
    404: "No such model, version or path; the message names what there is",
    405: "Another method is meant; `allow` names it",
    408: "Its timeout ran out before it was executed",
    409: "Somebody else changed the deployment at the same time",
    413: "The body, its JSON part or what it unpacks to is too large",
    429: "More than this tenant's quota; `retry-after` says when to try again",
    500: "The model, or a replica, failed",
    503: "Overloaded, or not ready; `retry-after` says when to try again",
}
_TENSOR_DATA: Json = {
    "type": "array", "items": {"anyOf": [{"$ref": "#/components/schemas/tensor_data"}, {"type": "number"},
                                         {"type": "string"}, {"type": "boolean"}]},
    "description": "Row by row, flat or nested as `shape` says; as many values as the sizes in `shape` multiply to.",
}  # fmt: skip


def describe(host: ModelHost, root_path: str = "") -> Json:
    """Of what the host serves now, where a path begins with `root_path`. While nothing is served the tensors are told
    in general."""
    try:
        versions, variant = answers.versions(host), host.variant
    except NotReady:
        versions, variant = [], None
    return {
        "openapi": "3.0.3",
        "info": {
            "title": f"{host.model_name}: Open Inference Protocol v2",
            "version": answers.SERVER["version"],
            "description": "Every error is an object with one field, `error`: what was wrong, and the way out.",
        },
        "servers": [{"url": root_path or "/"}],
        "tags": [{"name": name} for name in ("inference", "model", "server", "repository")],
        "paths": _server_paths() | _model_paths(host, variant, versions) | _repository_paths(host.model_name),
        "components": {"schemas": _schemas(host.served), "responses": _responses()},
        "x-model": {
            "name": host.model_name, "versions": versions,
            "inputs": _told(host.served.inputs if host.served else ()),
            "outputs": _told(host.served.outputs if host.served else ()),
        },
    }  # fmt: skip


def example(variant: Variant) -> Json | None:
    """A request that is answered; None if its tensors are too large to be written out."""
    shapes = [variant.example_shape(spec, 1) for spec in variant.inputs]
    if sum(map(math.prod, shapes)) > _MAX_EXAMPLE:
        return None
    inputs = [
        {"name": spec.name, "shape": list(shape), "datatype": spec.datatype,
         "data": [_nought(spec.datatype)] * math.prod(shape)}
        for spec, shape in zip(variant.inputs, shapes, strict=True)
    ]  # fmt: skip
    return {"id": "1", "inputs": inputs}


def _nought(datatype: str) -> Any:
    kind = NUMPY_OF_DATATYPE[datatype].kind
    return {"O": "", "b": False, "f": 0.0}.get(kind, 0)


def _told(specs: tuple[TensorSpec, ...]) -> list[Json]:
    return [spec.model_dump(mode="json") for spec in specs]


def _server_paths() -> Json:
    ready = {"200": _ok("ready_server"), "503": _ok("ready_server", 503)}
    return {
        "/v2": {"get": _operation("server", "Server metadata", {"200": _ok("metadata_server")})},
        "/v2/health/live": {"get": _operation("server", "Is the server up?", {"200": _ok("live_server")})},
        "/v2/health/ready": {"get": _operation("server", "Would an inference be taken?", ready)},
        "/healthz": {"get": _operation("server", "The same, for load balancers", ready)},
        "/v2/models/stats": {"get": _operation("server", "Statistics of every model", _or_not_ready("statistics"))},
        "/v2/openapi.json": {"get": _operation("server", "This description", {"200": {"description": "OK"}})},
        "/v2/docs": {"get": _operation("server", "A page to read and try it", {"200": {"description": "OK"}})},
    }


def _model_paths(host: ModelHost, variant: Variant | None, versions: list[str]) -> Json:
    base = f"/v2/models/{host.model_name}"
    version: Json = {
        "name": "version", "in": "path", "required": True, "schema": {"type": "string"},
        "description": "One of those that the model's metadata lists",
    }  # fmt: skip
    if versions:
        version["schema"] = {"type": "string", "enum": versions}
        version["example"] = versions[0]
    infer = _infer(host.served, variant)
    ready = {"200": _ok("ready_model"), "503": _ok("ready_model", 503)}
    paths: Json = {}
    for prefix, parameters, which in ((base, [], ""), (f"{base}/versions/{{version}}", [version], " (one version)")):
        unknown = {"404": _error(404)} if parameters else {}
        gets = {
            "": ("Metadata", _or_not_ready("metadata_model")), "/ready": ("Would an inference be taken?", ready),
            "/config": ("How it is served", _or_not_ready("configuration")),
            "/stats": ("What was executed, and how long it took", _or_not_ready("statistics")),
        }  # fmt: skip
        for path, (summary, responses) in gets.items():
            paths[prefix + path] = {"get": _operation("model", summary + which, responses | unknown)}
        responses = infer["responses"] | unknown
        paths[f"{prefix}/infer"] = {"post": infer | {"summary": infer["summary"] + which, "responses": responses}}
        if parameters:
            for path in [*gets, "/infer"]:
                paths[prefix + path]["parameters"] = parameters
    return paths


def _infer(served: Served | None, variant: Variant | None) -> Json:
    json_body: Json = {"schema": {"$ref": "#/components/schemas/inference_request"}}
    given = example(variant) if variant is not None else None
    if given is not None:
        json_body["example"] = given
    binary = {"schema": {"type": "string", "format": "binary"}}
    content: Json = {"application/json": json_body, "application/octet-stream": binary}
    if served is not None and _takes_pictures(served):
        content |= {"image/png": binary, "image/jpeg": binary}
    tensors = {
        "description": "The outputs", "headers": {
            "sluice-variant": {"schema": {"type": "string"}, "description": "The variant that answered"},
            "sluice-version": {"schema": {"type": "string"}, "description": "Its version"},
            "inference-header-content-length": {
                "schema": {"type": "string"}, "description": "Bytes of JSON before the raw tensors, if there are any",
            },
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/inference_response"}},
                    "application/octet-stream": binary},
    }  # fmt: skip
    errors = {str(status): _error(status) for status in (400, 408, 413, 429, 500, 503)}
    return _operation("inference", "Infer", {"200": tensors} | errors) | {
        "description": (
            "JSON; or with `inference-header-content-length`, so many bytes of JSON and then the raw little-endian "
            "tensors (`parameters.binary_data_size` of each); or as application/octet-stream without that header, or "
            "with a 0 in it, the bytes of the one input's rows. `binary_data` of an output, or `binary_data_output` of "
            f"the request, asks for raw tensors back. JSON may have {MAX_JSON_BYTES >> 20} MiB; bodies may be packed "
            "by gzip or deflate."
        ),
        "parameters": _wishes(),
        "requestBody": {"required": True, "content": content},
    }


def _takes_pictures(served: Served) -> bool:
    try:
        picture_input(served.inputs)
    except InvalidRequest:
        return False
    return True


def _wishes() -> list[Json]:
    """Headers; in JSON the same may stand in `parameters`, without the prefix."""
    whole = {"type": "integer", "minimum": 0, "maximum": (1 << 62) - 1}
    told: tuple[tuple[str, Json, str], ...] = (
        ("sluice-timeout", whole, "Microseconds after which the answer is of no use; 0: none"),
        ("sluice-priority", whole, "1 is the most urgent class; 0: none"),
        ("sluice-accuracy", {"anyOf": [{"type": "string", "enum": list(ACCURACIES)}, {"type": "number"}]},
         "How exact the answer must be, or the least accuracy of who gives it"),
        ("sluice-tenant", {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9._-]+$"},
         "Whose quota it counts against"),
        ("inference-header-content-length", whole,
         "Bytes of JSON in front of raw tensors; 0: the body is the bytes of the one input"),
    )  # fmt: skip
    return [{"name": name, "in": "header", "schema": schema, "description": text} for name, schema, text in told]


def _repository_paths(model_name: str) -> Json:
    def body(schema: Json, given: Json) -> Json:
        return {"content": {"application/json": {"schema": schema, "example": given}}}

    changed = {"200": _ok("index")} | {str(status): _error(status) for status in (400, 409, 413, 500)}
    parameters: Json = {"type": "object", "properties": {"variant": {"type": "string", "maxLength": 512}}}
    dependents: Json = {"type": "object", "properties": {"unload_dependents": {"type": "boolean"}}}
    ready: Json = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    base = f"/v2/repository/models/{model_name}"
    index = _operation("repository", "What is resident", {"200": _ok("index"), "400": _error(400), "413": _error(413)})
    load = _operation("repository", "Serve the model in every replica", changed)
    unload = _operation("repository", "Let the model go in every replica", changed)
    off = "Refused unless the deployment's user_config says `repository: true`."
    return {
        "/v2/repository/index": {"post": index | {"requestBody": body(ready, {"ready": False})}},
        f"{base}/load": {"post": load | {
            "description": f"What it served, or the variant of the store that `parameters.variant` names. {off}",
            "requestBody": body({"type": "object", "properties": {"parameters": parameters}}, {}),
        }},
        f"{base}/unload": {"post": unload | {
            "description": off,
            "requestBody": body({"type": "object", "properties": {"parameters": dependents}}, {}),
        }},
    }  # fmt: skip


def _operation(tag: str, summary: str, responses: Json) -> Json:
    return {"tags": [tag], "summary": summary, "responses": responses}


def _ok(schema: str, status: int = 200) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": _STATUSES[status], "content": content}


def _or_not_ready(schema: str) -> Json:
    return {"200": _ok(schema), "503": _error(503)}


def _error(status: int) -> Json:
    return {"$ref": f"#/components/responses/{status}"}


def _responses() -> Json:
    retry = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds"}}
    return {
        str(status): _ok("error", status) | ({"headers": retry} if status in (429, 503) else {})
        for status in _STATUSES if status >= 400
    }  # fmt: skip


def _object(required: str, /, **properties: Any) -> Json:
    return {"type": "object", "required": required.split(), "properties": properties}


def _schemas(served: Served | None) -> Json:
    text, flag, whole = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
    texts = {"type": "array", "items": text}
    parameters = {"$ref": "#/components/schemas/parameters"}
    inputs, outputs = (served.inputs, served.outputs) if served is not None else ((), ())
    data = {"$ref": "#/components/schemas/tensor_data"}
    tensor = {"name": text, "datatype": _datatypes(()), "shape": {"type": "array", "items": {"type": "integer"}}}
    wanted_output = _object("name", name=_names(outputs), parameters=parameters)
    answered = _object("name shape datatype", name=_names(outputs), shape=_shape(()), datatype=_datatypes(outputs),
                       parameters=parameters, data=data)  # fmt: skip
    duration = _object("count", count=whole, ns=whole)
    return {
        "error": _object("error", error=text),
        "live_server": _object("live", live=flag),
        "ready_server": _object("live ready", live=flag, ready=flag),
        "ready_model": _object("name ready", name=text, ready=flag),
        "metadata_server": _object("name version extensions", name=text, version=text, extensions=texts),
        "metadata_model": _object(
            "name platform inputs outputs", name=text, versions=texts, platform=text,
            inputs={"type": "array", "items": {"$ref": "#/components/schemas/metadata_tensor"}},
            outputs={"type": "array", "items": {"$ref": "#/components/schemas/metadata_tensor"}},
        ),
        "metadata_tensor": _object("name datatype shape", **tensor),
        "parameters": {
            "type": "object", "additionalProperties": {"anyOf": [text, {"type": "number"}, flag]},
            "description": "Of a request: timeout, priority, accuracy, tenant, binary_data_output; others pass.",
        },
        "tensor_data": _TENSOR_DATA,
        "inference_request": _object(
            "inputs", id=text, parameters=parameters,
            inputs={"type": "array", "minItems": max(1, len(inputs)), **({"maxItems": len(inputs)} if inputs else {}),
                    "items": _request_inputs(inputs, parameters)},
            outputs={"type": "array", "items": wanted_output},
        ),
        "inference_response": _object(
            "model_name outputs", model_name=text, model_version=text, id=text, parameters=parameters,
            outputs={"type": "array", "items": answered},
        ),
        "configuration": _object("name platform max_batch_size input output", name=text, platform=text,
                                 max_batch_size=whole),
        "statistics": _object("model_stats", model_stats={"type": "array", "items": _object(
            "name inference_count execution_count inference_stats batch_stats", name=text, version=text,
            last_inference=whole, inference_count=whole, execution_count=whole,
            inference_stats={"type": "object", "additionalProperties": duration},
            batch_stats={"type": "array", "items": {"type": "object"}},
        )}),
        "index": {"type": "array", "items": _object(
            "name state reason", name=text, version=text, reason=text,
            state={"type": "string", "enum": ["READY", "UNAVAILABLE"]},
        )},
    }  # fmt: skip


def _request_inputs(specs: tuple[TensorSpec, ...], parameters: Json) -> Json:
    """Of a model that is not there, any tensor."""
    alone: list[tuple[TensorSpec, ...]] = [(spec,) for spec in specs]
    each = [
        _object("name shape datatype", name=_names(several), shape=_shape(several), datatype=_datatypes(several),
                parameters=parameters, data={"$ref": "#/components/schemas/tensor_data"})
        for several in alone or [()]
    ]  # fmt: skip
    return each[0] if len(each) == 1 else {"anyOf": each}


def _names(specs: tuple[TensorSpec, ...]) -> Json:
    return {"type": "string", **({"enum": [spec.name for spec in specs]} if specs else {})}


def _datatypes(specs: tuple[TensorSpec, ...]) -> Json:
    known: dict[str, None] = dict.fromkeys(spec.datatype for spec in specs)
    return {"type": "string", "enum": list(known or NUMPY_OF_DATATYPE)}


def _shape(specs: tuple[TensorSpec, ...]) -> Json:
    shape: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    if specs:
        [spec] = specs
        shape |= {"minItems": len(spec.shape), "maxItems": len(spec.shape)}
        shape["description"] = f"{list(spec.shape)}; -1 stands for any size from 1, the first is the batch"
    return shape
