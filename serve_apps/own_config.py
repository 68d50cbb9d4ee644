"""A replica changes its own deployment: one application's `user_config`, in Serve's own records.

    own = OwnConfig()
    before = await own.read()
    await own.change(before, before | {"loaded": False}, arrived=lambda: host.applied == ...)

Serve's controller keeps the config, hands it to every replica and to each that starts later. It is asked as an actor,
and not through Ray's dashboard as `sluice variants promote` does: a replica on another machine reaches no dashboard,
and needs none. Serve takes a whole config or nothing, so the other applications go along as they were submitted; what
somebody else changes between `read` and `change` is found out, but for the milliseconds between the two calls here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from cluster.errors import ClusterError, ConfigError, RefConflict

_LOOK_S = 0.1
_log = logging.getLogger("ray.serve")


class OwnConfig:
    """Of the replica that it is used in. All methods belong to its event loop."""

    def __init__(self) -> None:
        self._found: Any = None

    async def read(self) -> dict[str, Any]:
        """The user_config as it was submitted. Raises ConfigError if this application has no config."""
        _, deployment = await self._submitted()
        return _user_config(deployment)

    async def change(
        self, before: dict[str, Any], after: dict[str, Any], *, arrived: Callable[[], bool], timeout_s: float = 300.0
    ) -> None:
        """Have `after` instead of `before` in every replica, and return when it is; `arrived` says whether it is in
        this one.

        Raises RefConflict if it is not `before`, or was changed meanwhile; ClusterError with Serve's reason if a
        replica does not take it: then it is `before` again, or on its way to be."""
        await self._apply(before, after)
        try:
            await self._wait(after, arrived, time.monotonic() + timeout_s)
        except ClusterError as error:
            try:
                await self._apply(after, before)
            except (ClusterError, RefConflict) as worse:
                _log.error("the user_config before could not be put back: %s", worse)
            raise error

    async def _apply(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        from ray.serve.schema import ServeDeploySchema

        applications, deployment = await self._submitted()
        if _user_config(deployment) != before:
            raise RefConflict("somebody else changed this deployment's user_config at the same time; ask again")
        details = await self._ask("get_serve_instance_details")
        deployment.user_config = after
        whole = ServeDeploySchema(
            applications=list(applications.values()), target_capacity=details.get("target_capacity")
        )
        await self._ask("apply_config", whole)

    async def _wait(self, wanted: dict[str, Any], arrived: Callable[[], bool], end: float) -> None:
        """Serve changes replicas a few at a time, and calls an application running also before it began: it has begun
        once this replica has it, and from then on running means that all have."""
        name, deployment_name = _names()
        application: dict[str, Any] = {}
        while time.monotonic() < end:
            began = arrived()
            application = (await self._ask("get_serve_instance_details"))["applications"].get(name, {})
            deployment = application.get("deployments", {}).get(deployment_name, {})
            if began and (application.get("status"), deployment.get("status")) == ("RUNNING", "HEALTHY"):
                return
            if application.get("status") in ("DEPLOY_FAILED", "UNHEALTHY") or "failed" in deployment.get("message", ""):
                raise ClusterError(f"a replica does not take it: {_reason(application, deployment)}")
            _, submitted = await self._submitted()
            if _user_config(submitted) != wanted:
                raise RefConflict("somebody else changed this deployment's user_config meanwhile; ask again")
            await asyncio.sleep(_LOOK_S)
        raise ClusterError(
            f"application {name!r} is {application.get('status', 'gone')} and some replica has not taken it yet; see "
            "Ray's dashboard"
        )

    async def _submitted(self) -> tuple[dict[str, Any], Any]:
        """(all applications' schemas by name, our deployment's in ours)"""
        name, deployment_name = _names()
        applications = await self._ask("get_app_configs")
        ours = applications.get(name)
        deployment = next((each for each in ours.deployments if each.name == deployment_name), None) if ours else None
        if deployment is None:
            raise ConfigError(
                f"application {name!r} was not deployed from a Serve config that names {deployment_name}, so nothing "
                "can be changed in it; deploy it with `sluice serve` or `serve deploy`"
            )
        return applications, deployment

    async def _ask(self, method: str, *args: Any) -> Any:
        """Raises ClusterError if the controller does not answer."""
        import ray
        from ray.exceptions import RayError
        from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

        try:
            if self._found is None:
                self._found = await asyncio.to_thread(ray.get_actor, SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
            return await asyncio.wait_for(getattr(self._found, method).remote(*args), 60.0)
        except (RayError, ValueError, TimeoutError) as error:
            raise ClusterError(f"Serve's controller does not answer {method} ({error!r:.300})") from error


def _user_config(deployment: Any) -> dict[str, Any]:
    """Of a deployment's schema, where one that was left out is neither None nor a dict."""
    config = deployment.user_config
    return dict(config) if isinstance(config, dict) else {}


def _names() -> tuple[str, str]:
    """Of the application and the deployment. Raises ConfigError outside a replica."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        context = serve.get_replica_context()
    except RayServeException as error:
        raise ConfigError("this model is served by no Serve deployment, so it has no config to be changed") from error
    return context.app_name, context.deployment


def _reason(application: dict[str, Any], deployment: dict[str, Any]) -> str:
    """The last lines of what Serve says: above them is its traceback."""
    text = "\n".join([application.get("message", ""), deployment.get("message", "")])
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    return "; ".join(dict.fromkeys(lines[-3:]))[:1000] or "Serve gives no reason"
