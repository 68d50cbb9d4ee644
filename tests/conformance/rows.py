"""The table's rows, in the order of the specification's text.

API, payload, tensor data, data types and errors are those of the Open Inference Protocol v2 (inference_rest.md and
inference_grpc.md: "API | Verb | Path", "Inference Request JSON Object", "Tensor Data", "Tensor Data Types", "...Error
Object"); the extensions are Triton's (binary tensor data, model configuration, statistics, model repository) and what
Sluice takes beside the protocol.
"""

from __future__ import annotations

DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip

ROWS: dict[str, dict[str, str]] = {
    "API": {
        "live": "Server Live: `GET v2/health/live`, `ServerLive`",
        "ready": "Server Ready: `GET v2/health/ready`, `ServerReady`",
        "server": "Server Metadata: `GET v2`, `ServerMetadata`",
        "model": "Model Metadata: `GET v2/models/M`, `ModelMetadata`",
        "model-version": "Model Metadata of a version: `GET v2/models/M/versions/V`",
        "model-ready": "Model Ready: `GET v2/models/M/ready`, `ModelReady`",
        "model-ready-version": "Model Ready of a version: `GET v2/models/M/versions/V/ready`",
        "infer": "Inference: `POST v2/models/M/infer`, `ModelInfer`",
        "infer-version": "Inference of a version: `POST v2/models/M/versions/V/infer`",
    },
    "Inference request and response": {
        "id": "`id` comes back; without one the answer is whole all the same",
        "parameters": "`parameters` of string, number and boolean are taken",
        "outputs": "`outputs` chooses what comes back",
        "model-name": "`model_name` and `model_version` are in the answer",
        "batch": "the whole batch in `shape` and `data`, and the whole batch back",
    },
    "Tensor data": {
        "flat": "`data` as one flat list / typed contents",
        "nested": "`data` as nested lists",
        "raw-in": "raw bytes in: binary tensor data / `raw_input_contents`",
        "raw-out": "raw bytes back: `binary_data`, `binary_data_output` / `raw_output_contents`",
        "mixed": "one input as a list, another as raw bytes",
    },
    "Data types, as a list": {f"{name}-list": name for name in DATATYPES},
    "Data types, as raw bytes": {f"{name}-raw": name for name in DATATYPES},
    "Errors": {
        "unknown-model": "Model Metadata of a model that is not there: 404 / NOT_FOUND, and a message",
        "unknown-version": "the same of a version",
        "unknown-infer": "Inference by a model that is not there",
        "not-json": "a body that is no JSON: 400",
        "no-inputs": "no `inputs`: 400 / INVALID_ARGUMENT",
        "unknown-input": "an input that the model has not",
        "wrong-datatype": "a data type that the input has not",
        "wrong-shape": "a shape that the input has not",
        "few-values": "fewer values than the shape says",
        "unknown-output": "an output that the model has not",
        "wrong-method": "a verb that the path has not: 405",
        "no-path": "a path that is not there: 404",
        "too-large": "a body that is too large: 413 / RESOURCE_EXHAUSTED",
    },
    "Extensions": {
        "gzip-in": "a body packed by gzip",
        "deflate-in": "a body packed by deflate",
        "gzip-out": "`Accept-Encoding`: packed or as it is, the answer is right",
        "config": "model configuration: `GET v2/models/M/config`",
        "stats": "statistics: `GET v2/models/M/stats`",
        "index": "model repository: `POST v2/repository/index`",
        "load": "model repository: `POST v2/repository/models/M/load`",
        "unload": "model repository: after `unload` it refuses with 503, after `load` it answers again",
        "octets": "`application/octet-stream`: the input's bytes alone, the output's bytes back",
        "png": "`POST image/png`",
        "jpeg": "`POST image/jpeg`",
        "openapi": "`GET v2/openapi.json` describes it",
    },
    "Schemathesis on that description": {
        "schemathesis": "every operation, examples and requests made up: no fault, answers as described",
    },
}
NAMES = frozenset(name for rows in ROWS.values() for name in rows)
