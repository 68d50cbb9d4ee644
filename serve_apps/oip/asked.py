"""A request as it comes over a wire, whichever that is: what it wishes for -> what the batcher goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.errors import SluiceError
from serve_apps.executor import Answer, Arrays, Model, Request
from serve_apps.oip.wishes import Wishes

if TYPE_CHECKING:
    from serve_apps.oip.served import Host, Served


class Asked(Request):
    """What a Host takes."""

    __slots__ = ("_host", "cached", "wish")

    def __init__(
        self, host: Host, served: Served, models: tuple[Model, ...], wished: Wishes, inputs: Arrays, *,
        spent_s: float = 0.0,
    ) -> None:  # fmt: skip
        """`spent_s` of its time is over."""
        timeout_s, priority, accuracy, tenant = wished
        timeout_s = timeout_s or host.default_timeout_s
        if spent_s and timeout_s is not None:
            timeout_s -= spent_s
        if type(accuracy) is float:
            accuracy *= served.floors
        Request.__init__(
            self, inputs, _done, timeout_s=timeout_s, priority=priority, tenant=tenant, accuracy=accuracy,
            models=models,
        )  # fmt: skip
        self.wish = (models, accuracy, tenant)
        """What beside the inputs decides the answer: equal ones may share it (serve_apps/cache.py)."""
        self.cached: Any = None
        """The cache that it went through."""
        self._host = host

    def cancel(self) -> None:
        self._host.cancel(self)

    def finish(self, outcome: Answer | SluiceError) -> None:
        """Answer it."""
        raise NotImplementedError


def _done(request: Request, outcome: Answer | SluiceError) -> None:
    assert isinstance(request, Asked)
    request.finish(outcome)
