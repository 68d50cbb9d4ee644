"""What an awaiting caller of the batcher holds, and what is counted of all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import SluiceError
from serve_apps.executor import Answer, Request


@dataclass
class Counters:
    """Since the start. Each accepted request ends in one of answered, failed, expired, evicted and cancelled; `refused`
    counts those that were not accepted, `batch_sizes` batches by their rows."""

    answered: int = 0
    failed: int = 0
    expired: int = 0
    """Also those that would not have been done in their time, found out when a batch formed."""
    evicted: int = 0
    """Pushed out of a full queue by a request of a higher class."""
    refused: int = 0
    cancelled: int = 0
    batches: int = 0
    batch_sizes: dict[int, int] = field(default_factory=dict)


class Pending(asyncio.Future[Answer]):
    """What `submit` returns: its cancellation takes the request out of the queue at once."""

    request: Request
    forget: Callable[[Request], None]

    def cancel(self, msg: Any = None) -> bool:
        if not super().cancel(msg):
            return False
        self.forget(self.request)
        return True


def resolve(request: Request, outcome: Answer | SluiceError) -> None:
    """`done` of such a request."""
    future: Pending = request.context
    if isinstance(outcome, SluiceError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
