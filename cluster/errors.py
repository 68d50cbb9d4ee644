"""Every error that Sluice raises on purpose. A message says what, the value, and the way out.

SluiceError                     500
├── InvalidRequest              400  (also a ValueError) the caller's mistake: shape, dtype, syntax
│   ├── ConfigError             400  a bad file, flag or field
│   └── PayloadTooLarge         413
├── UnknownModel                404
├── DeadlineExceeded            408  + retry_after_s: the request's own timeout ran out before it was executed
├── QuotaExceeded               429  + retry_after_s: this tenant sent more than its quota
├── Overloaded                  503  + retry_after_s: the queue is full, or the wait would be longer than the timeout
├── NotReady                    503  + retry_after_s: still loading, or draining
├── InferenceFailed             500  the model itself raised
├── ArtifactError               500
│   ├── VariantNotFound         404
│   ├── ChecksumMismatch        500  the bytes are not the bytes that the manifest names
│   └── RefConflict             409  compare-and-swap lost: somebody else moved the reference
├── RuntimeUnavailable          500  a runtime, its device or its compiler is missing: the message says the way out
├── DataUnavailable             500  a data set is neither on disk nor to be downloaded
├── ClusterError                500  Ray or Serve did not start, stop or answer
├── ServerUnreachable           500  a client's: nobody answered, or the connection broke
├── ProtocolError               500  a client's: what came back is no answer of the protocol
├── TrainingFailed              500  NaN loss, full disk, lost worker: the last checkpoint stays intact
└── ClientSaturated             500  the load generator could not hold the rate: "can't tell", never a number
"""

from __future__ import annotations


class SluiceError(Exception):
    """Base class; `http_status` is what a client sees if the error reaches the wire."""

    http_status: int = 500


class InvalidRequest(SluiceError, ValueError):
    http_status = 400


class ConfigError(InvalidRequest):
    pass


class PayloadTooLarge(InvalidRequest):
    http_status = 413


class UnknownModel(SluiceError):
    http_status = 404


class DeadlineExceeded(SluiceError):
    http_status = 408

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceeded(SluiceError):
    http_status = 429

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(SluiceError):
    http_status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(SluiceError):
    http_status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InferenceFailed(SluiceError):
    pass


class ArtifactError(SluiceError):
    pass


class VariantNotFound(ArtifactError):
    http_status = 404


class ChecksumMismatch(ArtifactError):
    pass


class RefConflict(ArtifactError):
    http_status = 409


class RuntimeUnavailable(SluiceError):
    pass


class DataUnavailable(SluiceError):
    pass


class ClusterError(SluiceError):
    pass


class ServerUnreachable(SluiceError):
    pass


class ProtocolError(SluiceError):
    pass


class TrainingFailed(SluiceError):
    pass


class ClientSaturated(SluiceError):
    pass
