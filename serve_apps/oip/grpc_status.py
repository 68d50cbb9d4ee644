"""SluiceError -> gRPC status: code, what is said, and in the trailing metadata when to try again.

    InvalidRequest 3 INVALID_ARGUMENT    PayloadTooLarge, QuotaExceeded 8 RESOURCE_EXHAUSTED    UnknownModel 5 NOT_FOUND
    DeadlineExceeded 4 DEADLINE_EXCEEDED    Overloaded, NotReady 14 UNAVAILABLE    anything else 13 INTERNAL

As REST's, it follows from the HTTP status that an error carries.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from cluster.errors import SluiceError
from serve_apps import refusals

OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED = 0, 3, 4, 5, 8
FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 9, 12, 13, 14
RETRY_AFTER = "retry-after"
_CODES = {
    400: INVALID_ARGUMENT, 404: NOT_FOUND, 408: DEADLINE_EXCEEDED, 409: FAILED_PRECONDITION, 413: RESOURCE_EXHAUSTED,
    429: RESOURCE_EXHAUSTED, 501: UNIMPLEMENTED, 503: UNAVAILABLE,
}  # fmt: skip
_MAX_CHARACTERS = 1024
"""Percent-encoded it may be nine times as long, and clients take 8 KiB of trailers in all."""
_log = logging.getLogger("ray.serve")


class Status(NamedTuple):
    code: int
    details: str = ""
    retry_after_s: int | None = None

    @property
    def counts_as(self) -> int:
        """The HTTP status that Serve's books have it under."""
        return 200 if self.code == OK else 500 if self.code == INTERNAL else 400


FINE = Status(OK)


def status_of(error: SluiceError) -> Status:
    """What a client is told of it."""
    text, retry_after_s = refusals.told(error)
    return Status(_CODES.get(error.http_status, INTERNAL), text[:_MAX_CHARACTERS], retry_after_s)


def unexpected(what: str) -> Status:
    """What is told of a fault of ours, which is being handled."""
    _log.exception("%s failed", what)
    return Status(INTERNAL, refusals.UNEXPECTED)
