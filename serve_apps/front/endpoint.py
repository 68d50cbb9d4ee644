"""What the front asks of whoever answers inferences, and whom it tells of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from serve_apps.front.head import Head

Reply = Callable[[int, bytes, bytes], None]
"""(status, whole header lines among them the length, body)"""


class Pending(Protocol):
    """An inference on its way."""

    def cancel(self) -> None:
        """Nobody waits for it any more; its reply will not be called."""


class Endpoint(Protocol):
    """What answers inferences; one for a replica."""

    def takes(self, head: Head) -> bool:
        """Is it an inference, of a size that may be read?"""

    def begin(self, head: Head, body: bytes, reply: Reply) -> Pending | None:
        """Call `reply` exactly once, now (then None is returned) or later. Never raises."""


class Ledger(Protocol):
    """What is told of each inference."""

    def began(self) -> None: ...

    def ended(self, status: int, took_s: float) -> None:
        """499: its client left."""
