"""ModelDeployment: one model in one replica, its own ingress. HAProxy forwards straight to it: one hop.

Several variants of the model may be resident at once: the batcher picks one for each batch, within what the requests
allow (cluster/scheduling.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, DeadlineExceeded, VariantNotFound
from cluster.runtimes import RuntimeConfig
from cluster.scheduling import Scheduling
from cluster.variants import Variant
from serve_apps.app import wrong_fields
from serve_apps.batcher import MAX_BATCH_SIZE, Batcher
from serve_apps.cache import ResponseCache
from serve_apps.decoder import Decoder
from serve_apps.executor import Answer
from serve_apps.front import serve_hook
from serve_apps.front.direct import DirectListener
from serve_apps.front.grpc_methods import GrpcMethods
from serve_apps.front.protocol import LeanProtocol
from serve_apps.latents import Latents
from serve_apps.loading import Loaded, best_first, load
from serve_apps.oip.asked import Asked
from serve_apps.oip.routes import OipApp
from serve_apps.oip.served import Served, missing
from serve_apps.own_config import OwnConfig
from serve_apps.pending import Counters
from serve_apps.repository import Repository
from serve_apps.sequences import SequenceBuckets

_DRAIN_S = 20.0
_LOOK_S = 0.01


class UserConfig(BaseModel):
    """What changes without a restart. A field left out keeps its value, but for `variant`, `also` and `runtime`:
    without them, what the application's args name is served; and for the last two. The model is switched between two
    batches."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int | None = Field(default=None, ge=1)
    max_queued_requests: int | None = Field(default=None, ge=1)
    default_timeout_s: float | None = Field(default=None, gt=0)
    variant: str | None = None
    also: list[str] | None = None
    """Variants that are resident beside it: what the batcher may step down to under pressure."""
    runtime: RuntimeConfig | None = None
    scheduling: Scheduling | None = None
    """Classes of priority, quotas, when to step down."""
    cache_mib: float | None = Field(default=None, ge=0, le=1 << 20, allow_inf_nan=False)
    """Answers that are kept for equal inputs, and equal requests in flight are executed once; 0: only the latter."""
    repository: bool = False
    """May clients load and unload (serve_apps/repository.py)? Not where it is left out."""
    loaded: bool = True
    """False: nothing is served, and who asks is told how to change that; the replica stays."""


async def _off_the_loop(work: Callable[[], Loaded]) -> Loaded:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _make_app() -> OipApp:
    """Serve calls this in the replica, before the instance exists: the app looks it up at its first request."""
    app = OipApp(serve_hook.servable)
    LeanProtocol.endpoint = app.exchange  # used where serve_hook.py could take the port
    return app


class ModelHost(GrpcMethods):
    """Loads the variant, owns the batcher. Inference runs on the batcher's thread, never on the event loop: Serve
    counts a replica whose loop stalls as dead.

    Nothing is loaded before the first user_config, which may name another variant than the application's args: Serve
    opens the replica's port before it hands that over, and a replica that starts after a promotion must not answer even
    one request from the version before."""

    def __init__(
        self, model_name: str, store: str, variant: str, runtime: dict[str, Any], also: Sequence[str] = (),
        executors: int = 1, direct_port: int | None = None,
    ) -> None:  # fmt: skip
        self.model_name = model_name
        self._store = ArtifactStore(Path(store))
        self._bound = variant
        self._bound_also = tuple(also)
        self._bound_config = RuntimeConfig.model_validate(runtime)
        self._executors = executors
        self._direct_port = direct_port
        self._direct: DirectListener | None = None
        self._resident: tuple[Loaded, ...] = ()
        self._first: Loaded | None = None
        self._prepared: tuple[Loaded, ...] = ()
        self.served: Served | None = None
        self.unavailable: str | None = None
        self._batcher: Batcher | None = None
        self._cache: ResponseCache[Any, Answer] | None = None
        self._cache_mib: float | None = None
        self._rules: dict[str, Any] = {}
        self._level = 0
        self.decoder: Decoder | None = None
        self.default_timeout_s: float | None = None
        self._draining = False
        self._reconfiguring = asyncio.Lock()
        self.repository = False
        self.applied: dict[str, Any] | None = None
        self._repository = Repository(self, OwnConfig())

    @property
    def variant(self) -> Variant:
        """The manifest of what it was told to serve, whatever else is resident. Raises NotReady while nothing is."""
        return self._told.variant

    @property
    def _told(self) -> Loaded:
        if self._first is None:
            raise missing(self)
        return self._first

    @property
    def config(self) -> dict[str, Any]:
        """How it is served now: what `/config` tells."""
        batcher = self._running()
        return {
            "max_batch_size": batcher.max_batch_size,
            "max_queued_requests": batcher.max_queued_requests,
            "default_timeout_s": self.default_timeout_s,
            "runtime": self._told.config.model_dump(mode="json"),
        }

    @property
    def counters(self) -> Counters:
        """Of the batcher."""
        return self._running().counters

    @property
    def cache_hits(self) -> int | None:
        """See answers.ModelHost."""
        return None if self._cache is None else self._cache.counters.hits + self._cache.counters.joined

    def is_ready(self) -> bool:
        """True from when the model is loaded and warm until the replica drains."""
        return bool(self._resident) and not self._draining and not serve_hook.is_leaving()

    def _running(self) -> Batcher:
        if self._batcher is None:
            raise missing(self)
        return self._batcher

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a UserConfig between two batches, all of it or nothing. Raises ConfigError naming the field."""
        config = _valid(user_config)
        # A model takes its time to load, and Serve does not wait for it with the next config: the last one must stay.
        async with self._reconfiguring:
            if config.loaded:
                await self._serve(config)
            else:
                await self._unload()
            self.repository, self.applied = config.repository, user_config

    async def _serve(self, config: UserConfig) -> None:
        await self._switch(config)
        self._running().reconfigure(
            max_batch_size=config.max_batch_size, max_queued_requests=config.max_queued_requests,
            scheduling=config.scheduling,
        )  # fmt: skip
        if "default_timeout_s" in config.model_fields_set:
            self.default_timeout_s = config.default_timeout_s
        if "cache_mib" in config.model_fields_set:
            self._cache_of(config.cache_mib)

    async def prepare(self, user_config: dict[str, Any]) -> None:
        """Load and warm up what this config would serve, and keep it for when it comes. Raises as `reconfigure`."""
        config = _valid(user_config)
        async with self._reconfiguring:
            self._prepared = tuple((await self._at_hand(config)).values())

    async def load(self, parameters: Mapping[str, Any]) -> None:
        """In every replica; see Repository.load."""
        try:
            await self._repository.load(parameters)
        finally:
            self._prepared = ()  # if it did not come to that

    async def unload(self, parameters: Mapping[str, Any]) -> None:
        """In every replica; see Repository.unload."""
        await self._repository.unload(parameters)

    async def _unload(self) -> None:
        """Take nothing new, answer what was taken, and let go of the models."""
        self.unavailable = (
            f"model {self.model_name!r} was unloaded; POST /v2/repository/models/{self.model_name}/load loads it again"
        )
        self.served, self._resident, self._first, self._prepared = None, (), None, ()
        batcher, decoder = self._batcher, self.decoder
        if batcher is None or decoder is None:
            return
        end = time.monotonic() + _DRAIN_S
        while decoder.waiting and time.monotonic() < end:  # a picture was taken already when its decoding began
            await asyncio.sleep(_LOOK_S)
        await batcher.drain(_DRAIN_S)
        self._rules = {
            "scheduling": batcher.scheduling, "max_batch_size": batcher.max_batch_size,
            "max_queued_requests": batcher.max_queued_requests,
        }  # fmt: skip
        self._batcher = self._cache = None
        batcher.close()

    async def _at_hand(self, config: UserConfig) -> dict[str, Loaded]:
        """What it would serve, loaded, by id; first the one that it names. Raises and changes nothing if that can't
        be."""
        also = self._bound_also if config.also is None else config.also
        runtime, size = config.runtime or self._bound_config, config.max_batch_size or self._batch_size
        wanted = {variant.id: variant for variant in map(self._found, [config.variant or self._bound, *also])}
        here = (*self._resident, *self._prepared)
        kept = {v.id: each for v in wanted.values() for each in here if each.serves(v, runtime, size)}
        self._refuse_other_tensors(list(wanted.values()))
        for variant in wanted.values():
            if variant.id not in kept:
                # Also for a larger batch size alone: the executor may be inside the old runtime, so that one cannot be
                # warmed up.
                kept[variant.id] = await _off_the_loop(
                    lambda variant=variant: load(  # type: ignore[misc]
                        self._store, variant, runtime, max_batch_size=size, executors=self._executors
                    )
                )
        best_first(list(kept.values()))
        return {variant_id: kept[variant_id] for variant_id in wanted}

    @property
    def _batch_size(self) -> int:
        if self._batcher is not None:
            return self._batcher.max_batch_size
        return int(self._rules.get("max_batch_size", MAX_BATCH_SIZE))

    async def _switch(self, config: UserConfig) -> None:
        """Serve that, and return once no request is left that was taken by what was served before."""
        before = self._resident
        loaded = await self._at_hand(config)
        self._prepared = ()
        first = next(iter(loaded.values()))
        if set(loaded.values()) == set(before) and self._first is first:
            return
        self._resident, self._first = best_first(list(loaded.values())), first
        models = tuple(each.model for each in self._resident)
        if self._batcher is None:  # made on the loop that will use it: the constructor may run on another thread
            self._batcher = Batcher(models, **self._rules)
            self.decoder = self.decoder or Decoder()
            self._cache_of(self._cache_mib)
        self._batcher.reconfigure(models=models)
        if self._cache is not None:
            self._cache.models_changed()
        told = first.variant
        self.unavailable = None
        self.served = Served(
            self.model_name, models, told.inputs, told.outputs, floors=_sign(told), buckets=SequenceBuckets.of(told),
            latents=Latents.of(told),
        )  # fmt: skip
        gone = [each.model for each in before if each not in self._resident]
        if gone:
            # The old runtimes go with their last batch: an executor may be inside one now, so it is not closed here.
            await self._batcher.finished(gone, _DRAIN_S)

    def find(self, ref: str) -> str:
        """The id of a variant in the store. Raises ConfigError."""
        return self._found(ref).id

    def _found(self, ref: str) -> Variant:
        try:
            return self._store.get(ref)
        except VariantNotFound as error:
            raise ConfigError(f"variant={ref!r}: {error}") from error

    def _refuse_other_tensors(self, wanted: list[Variant]) -> None:
        """Raise ConfigError unless they take and give what is served, or what the application's args name."""
        served = self._resident[0].variant if self._resident else None
        with suppress(VariantNotFound):  # the one in args may be gone since another was promoted
            served = served or self._store.get(self._bound)
        served = served or wanted[0]
        for variant in wanted:
            if _tensors(variant) != _tensors(served):
                raise ConfigError(
                    f"variant {variant.name} ({variant.id}) has other inputs or outputs than {served.name}, which is "
                    "served; deploy it as an application of its own"
                )

    def _cache_of(self, mib: float | None) -> None:
        """From now on."""
        self._cache_mib = mib
        if mib is None:
            # What is on its way through the old one ends there: each request knows who ends it.
            self._cache = None
        elif self._cache is None:
            self._cache = ResponseCache(
                self._running(), Answer, max_bytes=int(mib * (1 << 20)), wish=lambda request: request.wish
            )
        else:
            self._cache.max_bytes = int(mib * (1 << 20))

    def put(self, request: Asked) -> None:
        """See Batcher.put."""
        batcher, cache = self._running(), self._cache
        if cache is None:
            batcher.put(request)
            return
        if batcher.level < self._level:  # calm again: what was answered under pressure can be answered better
            for model in batcher.models[1:]:
                cache.forget(model)
        self._level = batcher.level
        # The cache compares urgency before the batcher has looked: a class's place is a priority that means the same.
        request.priority = batcher.scheduling.rank(request.priority) + 1
        request.cached = cache
        cache.put(request)

    def cancel(self, request: Asked) -> None:
        """See Batcher.cancel."""
        cached = request.cached
        (self._running() if cached is None else cached).cancel(request)

    def expired(self, why: str) -> DeadlineExceeded:
        """See Batcher.expired."""
        return self._running().expired(why)

    async def check_health(self) -> None:
        """Called by Serve, first at the end of the start; the loop that answers is the health."""
        if self.applied is None:  # the application has no user_config
            await self.reconfigure({})
        if self._direct_port is not None and self._direct is None:
            app = OipApp(lambda: self)
            LeanProtocol.endpoint = app.exchange
            self._direct = DirectListener(app, port=self._direct_port)
            await self._direct.start(serve_hook.is_leaving)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For an autoscaling policy: how many wait, how long a request that came now would, and the step of accuracy
        that is served (0: the best)."""
        batcher = self._batcher
        if batcher is None:
            return {"queued": 0.0, "delay_s": 0.0, "level": 0.0}
        return {
            "queued": float(batcher.queued), "delay_s": batcher.predicted_delay_s(), "level": float(batcher.level),
        }  # fmt: skip

    async def __del__(self) -> None:
        self._draining = True
        if getattr(self, "_direct", None) is not None and self._direct is not None:
            await self._direct.stop(_DRAIN_S)
        if getattr(self, "_batcher", None) is not None and self._batcher is not None:
            await self._batcher.drain(_DRAIN_S)
            self._batcher.close()
            self._batcher = None


def _valid(user_config: dict[str, Any]) -> UserConfig:
    """Raises ConfigError naming the field."""
    try:
        return UserConfig.model_validate(user_config)
    except ValidationError as error:
        raise ConfigError(
            f"user_config is not valid ({wrong_fields(error, 'user_config')}); the fields are "
            f"{', '.join(UserConfig.model_fields)}"
        ) from error


def _tensors(variant: Variant) -> tuple[Any, ...]:
    return variant.inputs, variant.outputs, variant.sequence, variant.prior


def _sign(variant: Variant) -> float:
    """By what a floor that a request names is multiplied to compare with Model.accuracy: an error is better small."""
    accuracy = variant.accuracy
    return 1.0 if accuracy is None or accuracy.higher_is_better else -1.0


ModelDeployment = serve.deployment(name="ModelDeployment")(serve.ingress(_make_app)(ModelHost))
