"""What requests are answered with: one set of resident models, and the host that has it.

A Served is made whenever other models become resident, and never changes: a request that was checked against one is
executed by its models.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from cluster.errors import DeadlineExceeded, NotReady
from cluster.tensors import check_inputs
from cluster.variants import TensorSpec
from serve_apps.decoder import Decoder
from serve_apps.executor import Model
from serve_apps.latents import Latents
from serve_apps.oip.templates import Arrays, Templates, check_rows
from serve_apps.oip.wishes import Wishes
from serve_apps.sequences import SequenceBuckets

if TYPE_CHECKING:
    from serve_apps.oip.asked import Asked

_UNLOADED_RETRY_S = 30.0
"""Whoever unloaded a model has no plans for the next second."""
_WISHES_KEPT = 64
_UNPRINTABLE = re.compile(rb"[^\x21-\x7e]")


class Served:
    """One set of resident models, best first, and what each request needs of it, read once."""

    def __init__(
        self, model_name: str, models: tuple[Model, ...], inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...], *, floors: float = 1.0, buckets: SequenceBuckets | None = None,
        latents: Latents | None = None,
    ) -> None:  # fmt: skip
        """`floors` is -1 where accuracy is an error: a floor of it is the most that may be. `buckets` are those of the
        first input, if its samples differ in length; `latents` draws it from seeds."""
        self.floors = floors
        self.buckets = buckets
        self.latents = latents
        self.model_name = model_name
        self.models = models
        self.inputs = inputs
        self.outputs = outputs
        self._templates: dict[Wishes, Templates] = {}
        base = f"/v2/models/{model_name}"
        self.targets: dict[bytes, tuple[Model, ...]] = {f"{base}/infer".encode(): models}
        for model in models:
            self.targets[f"{base}/versions/{model.version}/infer".encode()] = (model,)
        self.lines = {
            # An id is hexadecimal; a name is whatever a manifest says, and must not end the line.
            model: b"sluice-variant: %s\r\nsluice-version: %s\r\n"
            % (_UNPRINTABLE.sub(b"?", model.name.encode()), model.version.encode())
            for model in models
        }

    def check(self, inputs: Arrays) -> None:
        """Raises InvalidRequest unless these are the inputs of a model, or what stands in their place, all of them with
        the same number of rows."""
        if self.latents is None or not self.latents.check(inputs):
            check_inputs(self.inputs, inputs)
            check_rows(inputs)

    def filled(self, inputs: Arrays) -> Arrays:
        """What `check` let pass, as the graph gets it: sequences padded, latents drawn. Raises InvalidRequest."""
        if self.latents is not None:
            return self.latents.filled(inputs)
        if self.buckets is None:
            return inputs
        name = self.inputs[0].name
        return inputs | {name: self.buckets.prepare(inputs[name])}

    def templates(self, wishes: Wishes) -> Templates:
        """Of requests whose headers wish for this."""
        if len(self._templates) > _WISHES_KEPT:
            self._templates.clear()
        return self._templates.setdefault(wishes, Templates())


class Host(Protocol):
    """What executes."""

    default_timeout_s: float | None
    decoder: Decoder | None
    """Of pictures; None while nothing is loaded."""

    unavailable: str | None
    """Why nothing is served though the replica is up, and the way out; None while something is, or will be soon."""

    @property
    def served(self) -> Served | None:
        """None while nothing is loaded."""

    def put(self, request: Asked) -> None:
        """Batcher.put, or whatever stands before it."""

    def cancel(self, request: Asked) -> None:
        """Its counterpart."""

    def expired(self, why: str) -> DeadlineExceeded:
        """For a request whose time ran out before it could be put. Raises NotReady."""


def still_loading() -> NotReady:
    """What is said while nothing is served yet."""
    return NotReady("this replica is still loading; send the request again, another one will take it")


def missing(host: Host) -> NotReady:
    """What is said while nothing is served, and why."""
    return still_loading() if host.unavailable is None else NotReady(host.unavailable, retry_after_s=_UNLOADED_RETRY_S)


def served_by(host: Host) -> Served:
    """Raises NotReady while nothing is."""
    served = host.served
    if served is None:
        raise missing(host)
    return served
