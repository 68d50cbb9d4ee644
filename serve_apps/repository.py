"""Load and unload, as Triton's model repository extension has them: a client's wish -> the deployment's user_config.

    POST /v2/repository/models/NAME/unload                                         every replica answers 503 with why
    POST /v2/repository/models/NAME/load                                           ... and serves again
    POST /v2/repository/models/NAME/load {"parameters": {"variant": "cnn/int8"}}   another variant of the store

What is asked of one replica holds for all of them, and for those that start later, because it becomes part of the
config that Serve keeps. A model is loaded and warmed up here before Serve is told: what does not run is an error, and
changes nothing. Off unless the deployment's user_config says `repository: true`, for whoever reaches the port could
stop the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from cluster.errors import InvalidRequest
from serve_apps.oip.tensors import brief


class Keeper(Protocol):
    """Where a deployment's user_config is kept; see OwnConfig."""

    async def read(self) -> dict[str, Any]: ...

    async def change(self, before: dict[str, Any], after: dict[str, Any], *, arrived: Any) -> None: ...


class Loader(Protocol):
    """What serves by a user_config."""

    model_name: str
    repository: bool
    applied: dict[str, Any] | None
    """The last user_config that was obeyed."""

    def find(self, ref: str) -> str:
        """The id of a variant. Raises ConfigError."""

    async def prepare(self, user_config: dict[str, Any]) -> None:
        """Have at hand what it would serve. Raises as `reconfigure` would, and changes nothing."""


class Repository:
    """One for a replica."""

    def __init__(self, loader: Loader, keeper: Keeper) -> None:
        self._loader = loader
        self._keeper = keeper
        self._changing = asyncio.Lock()

    async def load(self, parameters: Mapping[str, Any]) -> None:
        """Serve the model in every replica: what it served, or the `variant` that is named. Returns when all do, at
        once if they do already.

        Raises InvalidRequest, ConfigError for a variant that can't take the place, ClusterError if a replica fails on
        it, RefConflict if somebody else changed the deployment meanwhile."""
        self._check_open("load")
        ref = _variant(parameters)
        async with self._changing:
            before = await self._keeper.read()
            after = before
            if not before.get("loaded", True):
                after = {name: value for name, value in before.items() if name != "loaded"}
            if ref is not None:
                after = after | {"variant": await asyncio.to_thread(self._loader.find, ref)}
            if after != before:
                await self._loader.prepare(after)
            await self._change(before, after)

    async def unload(self, parameters: Mapping[str, Any]) -> None:
        """Let the model go in every replica, once what was taken is answered. Raises as `load` does."""
        self._check_open("unload")
        for name, value in parameters.items():
            # There are none here; a client that says so anyway means no harm.
            if name != "unload_dependents" or type(value) is not bool:
                raise InvalidRequest(
                    f"parameter {name[:100]!r}={brief.repr(value)} of unload is unknown; unload_dependents may be true "
                    "or false"
                )
        async with self._changing:
            before = await self._keeper.read()
            await self._change(before, before | {"loaded": False})

    async def _change(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        if after != before:
            await self._keeper.change(before, after, arrived=lambda: self._loader.applied == after)

    def _check_open(self, what: str) -> None:
        if not self._loader.repository:
            raise InvalidRequest(
                f"{what} is not allowed here; whoever deploys {self._loader.model_name!r} may allow it with "
                "`repository: true` in the deployment's user_config (`repository` of a plan)"
            )


def _variant(parameters: Mapping[str, Any]) -> str | None:
    for name, value in parameters.items():
        if name != "variant":
            raise InvalidRequest(
                f"parameter {name[:100]!r} of load is unknown: models come from the artifact store, not from the "
                'request; name one of its variants, {"parameters": {"variant": "NAME"}}'
            )
        if type(value) is not str or not 0 < len(value) <= 512:
            raise InvalidRequest(f"parameter variant={brief.repr(value)} of load must be a variant's name or id")
    return parameters.get("variant")
