"""ModelDeployment: one variant in one replica, its own ingress. HAProxy forwards straight to it: one hop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, NotReady, VariantNotFound
from cluster.runtimes import RuntimeConfig
from cluster.variants import Variant
from serve_apps.app import wrong_fields
from serve_apps.batcher import MAX_BATCH_SIZE, Batcher
from serve_apps.executor import Answer, Model
from serve_apps.loading import Loaded, load
from serve_apps.oip.routes import OipApp

_DRAIN_S = 20.0


class UserConfig(BaseModel):
    """What changes without a restart. A field left out keeps its value, but for `variant` and `runtime`: without them,
    those that the application's args name are served. The model is switched between two batches."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int | None = Field(default=None, ge=1)
    max_queued_requests: int | None = Field(default=None, ge=1)
    default_timeout_s: float | None = Field(default=None, gt=0)
    variant: str | None = None
    runtime: RuntimeConfig | None = None


async def _off_the_loop(work: Callable[[], Loaded]) -> Loaded:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _model(loaded: Loaded) -> Model:
    return Model(loaded.variant.name, loaded.variant.id, 0.0, (loaded.runtime.infer,))


def _make_app() -> OipApp:
    """Serve calls this in the replica, before the instance exists: the app looks it up at its first request."""
    instance: list[Any] = []

    def host() -> Any:
        if not instance:
            instance.append(serve.get_replica_context().servable_object)
        return instance[0]

    return OipApp(host)


class ModelHost:
    """Loads the variant, owns the batcher. Inference runs on the batcher's thread, never on the event loop: Serve
    counts a replica whose loop stalls as dead.

    Nothing is loaded before the first user_config, which may name another variant than the application's args: Serve
    opens the replica's port before it hands that over, and a replica that starts after a promotion must not answer even
    one request from the version before."""

    def __init__(self, model_name: str, store: str, variant: str, runtime: dict[str, Any]) -> None:
        self.model_name = model_name
        self._store = ArtifactStore(Path(store))
        self._bound = variant
        self._bound_config = RuntimeConfig.model_validate(runtime)
        self._loaded: Loaded | None = None
        self._batcher: Batcher | None = None
        self._default_timeout_s: float | None = None
        self._draining = False
        self._reconfiguring = asyncio.Lock()

    @property
    def variant(self) -> Variant:
        """The manifest of what answers now. Raises NotReady while nothing does."""
        return self._serving.variant

    @property
    def config(self) -> dict[str, Any]:
        """How it is served now: what `/config` tells."""
        batcher = self._running()
        return {
            "max_batch_size": batcher.max_batch_size,
            "max_queued_requests": batcher.max_queued_requests,
            "default_timeout_s": self._default_timeout_s,
            "runtime": self._serving.config.model_dump(mode="json"),
        }

    def is_ready(self) -> bool:
        """True from when the model is loaded and warm until the replica drains."""
        return self._loaded is not None and not self._draining

    @property
    def _serving(self) -> Loaded:
        if self._loaded is None:
            raise NotReady("this replica is still loading; send the request again, another one will take it")
        return self._loaded

    def _running(self) -> Batcher:
        # Made on the loop that will use it: the constructor may run on another thread.
        if self._batcher is None:
            self._batcher = Batcher([_model(self._serving)])
        return self._batcher

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a UserConfig between two batches, all of it or nothing. Raises ConfigError naming the field."""
        try:
            config = UserConfig.model_validate(user_config)
        except ValidationError as error:
            raise ConfigError(
                f"user_config is not valid ({wrong_fields(error, 'user_config')}); the fields are "
                f"{', '.join(UserConfig.model_fields)}"
            ) from error
        # A model takes its time to load, and Serve does not wait for it with the next config: the last one must stay.
        async with self._reconfiguring:
            await self._switch(
                config.variant or self._bound, config.runtime or self._bound_config, config.max_batch_size
            )
            self._running().reconfigure(
                max_batch_size=config.max_batch_size, max_queued_requests=config.max_queued_requests
            )
            if "default_timeout_s" in config.model_fields_set:
                self._default_timeout_s = config.default_timeout_s

    async def _switch(self, ref: str, config: RuntimeConfig, max_batch_size: int | None) -> None:
        """Serve that, and return once no request is left that was taken by what was served before."""
        try:
            variant, before = self._store.get(ref), self._loaded
        except VariantNotFound as error:
            raise ConfigError(f"variant={ref!r}: {error}") from error
        size = max_batch_size or (self._batcher.max_batch_size if self._batcher else MAX_BATCH_SIZE)
        if before is not None and before.serves(variant, config, size):
            return
        self._refuse_other_tensors(variant)
        # Also for a larger batch size alone: the executor may be inside the old runtime, so it cannot be warmed up.
        self._loaded = await _off_the_loop(lambda: load(self._store, variant, config, max_batch_size=size))
        batcher = self._running()
        if before is not None:
            # The old runtime goes with its last batch: the executor may be inside it now, so it is not closed here.
            gone = batcher.models
            batcher.reconfigure(models=[_model(self._loaded)])
            await batcher.finished(gone, _DRAIN_S)

    def _refuse_other_tensors(self, variant: Variant) -> None:
        """Raise ConfigError unless it takes and gives what is served, or what the application's args name."""
        served = self._loaded.variant if self._loaded else None
        with suppress(VariantNotFound):  # the one in args may be gone since another was promoted
            served = served or self._store.get(self._bound)
        if served is not None and (variant.inputs, variant.outputs) != (served.inputs, served.outputs):
            raise ConfigError(
                f"variant {variant.name} ({variant.id}) has other inputs or outputs than {served.name}, which is "
                "served; deploy it as an application of its own"
            )

    def submit(
        self, inputs: dict[str, NDArray[np.generic]], *, timeout_s: float | None, priority: int
    ) -> asyncio.Future[Answer]:
        """See Batcher.submit."""
        return self._running().submit(inputs, timeout_s=timeout_s or self._default_timeout_s, priority=priority)

    async def check_health(self) -> None:
        """Called by Serve, first at the end of the start; the loop that answers is the health."""
        if self._loaded is None:  # the application has no user_config
            await self.reconfigure({})

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Queue depth, for an autoscaling policy."""
        return {"queued": float(self._batcher.queued if self._batcher else 0)}

    async def __del__(self) -> None:
        self._draining = True
        if getattr(self, "_batcher", None) is not None and self._batcher is not None:
            await self._batcher.drain(_DRAIN_S)
            self._batcher.close()
            self._batcher = None


ModelDeployment = serve.deployment(name="ModelDeployment")(serve.ingress(_make_app)(ModelHost))
