"""The Python client of the Open Inference Protocol v2, for this server and those of other makes.

    >>> from serve_apps.oip.client import Client
    >>> with Client("http://127.0.0.1:8000") as client:
    ...     answer = client.infer("classifier", {"image": pictures}, timeout_s=0.1, accuracy="fast")
    ...     print(answer["logits"].argmax(1), answer.variant, answer.version)

Imports neither Ray nor torch, nor any of the server but its codec.
"""

from cluster.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
    QuotaExceeded,
    ServerUnreachable,
    SluiceError,
    UnknownModel,
)  # fmt: skip
from serve_apps.oip.client.answers import (
    Duration,
    InferAnswer,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    RepositoryModel,
    ServerMetadata,
    TensorMetadata,
)  # fmt: skip
from serve_apps.oip.client.clients import AsyncClient, Client
from serve_apps.oip.client.retries import NO_RETRIES, RetryPolicy

__all__ = [
    "NO_RETRIES", "AsyncClient", "Client", "DeadlineExceeded", "Duration", "InferAnswer", "InferenceFailed",
    "InvalidRequest", "ModelConfig", "ModelMetadata", "ModelStatistics", "Overloaded", "PayloadTooLarge",
    "ProtocolError", "QuotaExceeded", "RepositoryModel", "RetryPolicy", "ServerMetadata", "ServerUnreachable",
    "SluiceError", "TensorMetadata", "UnknownModel",
]  # fmt: skip
