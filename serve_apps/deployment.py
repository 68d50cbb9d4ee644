"""ModelDeployment: one variant in one replica, its own ingress. HAProxy forwards straight to it: one hop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import Variant
from serve_apps.batcher import Batcher
from serve_apps.oip.routes import OipApp

_DRAIN_S = 20.0


class UserConfig(BaseModel):
    """What changes without a restart. A field left out keeps its value; `variant` switches the model between batches."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int | None = Field(default=None, ge=1)
    max_queued_requests: int | None = Field(default=None, ge=1)
    default_timeout_s: float | None = Field(default=None, gt=0)
    variant: str | None = None


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
    counts a replica whose loop stalls as dead."""

    def __init__(self, model_name: str, store: str, variant: str, runtime: dict[str, Any]) -> None:
        self.model_name = model_name
        self._store = ArtifactStore(Path(store))
        self._config = RuntimeConfig.model_validate(runtime)
        self._variant = self._store.get(variant)
        self._runtime = load_runtime(self._store, self._variant, self._config)
        self._batcher: Batcher | None = None
        self._default_timeout_s: float | None = None

    @property
    def variant(self) -> Variant:
        """The manifest of what answers now."""
        return self._variant

    def is_ready(self) -> bool:
        """True once the batcher runs: Serve has called `reconfigure` or a request has come."""
        return self._batcher is not None

    def _running(self) -> Batcher:
        # Made on the loop that will use it: the constructor may run on another thread.
        if self._batcher is None:
            self._batcher = Batcher(self._runtime.infer)
        return self._batcher

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a UserConfig between two batches. Raises ConfigError naming the field."""
        try:
            config = UserConfig.model_validate(user_config)
        except ValidationError as error:
            raise ConfigError(f"user_config is not valid: {error}") from error
        batcher = self._running()
        self._default_timeout_s = config.default_timeout_s
        if config.variant is not None:
            variant = self._store.get(config.variant)
            if variant.id != self._variant.id:
                loop = asyncio.get_running_loop()
                runtime = await loop.run_in_executor(None, load_runtime, self._store, variant, self._config)
                self._runtime, self._variant = runtime, variant
                batcher.reconfigure(infer=runtime.infer)
        batcher.reconfigure(max_batch_size=config.max_batch_size, max_queued_requests=config.max_queued_requests)

    def submit(
        self, inputs: dict[str, NDArray[np.generic]], *, timeout_s: float | None, priority: int
    ) -> asyncio.Future[dict[str, NDArray[np.generic]]]:
        """See Batcher.submit."""
        return self._running().submit(inputs, timeout_s=timeout_s or self._default_timeout_s, priority=priority)

    async def check_health(self) -> None:
        """Called by Serve; the loop that answers is the health."""

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Queue depth, for an autoscaling policy."""
        return {"queued": float(self._batcher.queued if self._batcher else 0)}

    async def __del__(self) -> None:
        if getattr(self, "_batcher", None) is not None and self._batcher is not None:
            await self._batcher.drain(_DRAIN_S)
            self._batcher.close()
            self._batcher = None


ModelDeployment = serve.deployment(name="ModelDeployment")(serve.ingress(_make_app)(ModelHost))
