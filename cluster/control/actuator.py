"""Decision -> a running deployment: reads what a Ray cluster serves from its dashboard, and changes one application's
`user_config` without touching another or restarting a replica.

    deployed = read("http://HEAD:8265", "classifier")
    switch(deployed, variant.id)        # returns when every replica answers from it; else all is put back

Serve takes a whole config or nothing, so the other applications go along as they were submitted.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError

from cluster.control.serve_config import DEPLOYMENT, IMPORT_PATH
from cluster.errors import ClusterError, ConfigError
from cluster.local import deploy_config
from cluster.runtimes.base import RuntimeConfig

_PATIENCE_S = 10.0
_ANSWERS_PER_REPLICA = 20
"""So many equal answers in a row: with random balancing one of n replicas is missed with probability exp(-20)."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ANY = ("0.0.0.0", "::")
_INSTANCE = ("http_options", "grpc_options", "proxy_location", "target_capacity")
"""What a Serve config says beside its applications, where the dashboard tells it. Left out it would fall to its
default."""


@dataclass(frozen=True)
class Deployed:
    """One application of Sluice's as it was submitted to a running cluster."""

    address: str
    """Of the dashboard."""
    name: str
    """Of the application, and of the model."""
    store: str
    variant: str
    """What it was told to serve: an id or a name."""
    bound: str
    """What its args name: served where the user_config names nothing."""
    runtime: RuntimeConfig
    max_batch_size: int | None
    loaded: bool
    """False once a client unloaded it."""
    num_replicas: int
    """That run now."""
    urls: tuple[str, ...]
    """Where its HTTP proxies answer, one for each, without a slash at the end; none if they can't be reached from here.
    """
    config: Mapping[str, Any]
    """The whole Serve config of the cluster."""

    def with_variant(self, variant_id: str) -> dict[str, Any]:
        """The cluster's config with this application serving that variant, all else as it is."""
        changed: dict[str, Any] = copy.deepcopy(dict(self.config))
        application = next(each for each in changed["applications"] if each["name"] == self.name)
        deployment = next(each for each in application["deployments"] if each["name"] == DEPLOYMENT)
        deployment["user_config"] = (deployment.get("user_config") or {}) | {"variant": variant_id}
        return changed


def read(address: str, model_name: str) -> Deployed:
    """The application called `model_name` on the cluster with that dashboard.

    Raises ClusterError if the dashboard does not answer, ConfigError if there is no such application of Sluice's.
    """
    found = read_all(address)
    deployed = next((each for each in found if each.name == model_name), None)
    if deployed is None:
        names = ", ".join(each.name for each in found) or "none"
        raise ConfigError(
            f"{address} has no application {model_name!r} that a Serve config of Sluice's made; it has {names}: pass "
            "--model with one of these, or deploy first"
        )
    return deployed


def read_all(address: str) -> list[Deployed]:
    """Every application of Sluice's on that cluster. Raises ClusterError if its dashboard does not answer."""
    url = f"{address.rstrip('/')}/api/serve/applications/"
    try:
        answer = httpx.get(url, timeout=30.0)
        answer.raise_for_status()
        details = answer.json()
        applications = details["applications"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{url} does not answer ({error}); is Ray running there, with its dashboard?") from error
    submitted = [each["deployed_app_config"] for each in applications.values() if each.get("deployed_app_config")]
    config = {key: details[key] for key in _INSTANCE if details.get(key) is not None} | {"applications": submitted}
    found = []
    for application in submitted:
        with suppress(KeyError, TypeError, StopIteration, ValidationError):  # somebody else's
            found.append(_deployed(address, application, details, config))
    return found


def switch(deployed: Deployed, variant_id: str, *, timeout_s: float = 300.0) -> int:
    """Have every replica serve that variant, and return when they do: how many answers over HTTP said so (0 if no proxy
    can be reached from here; then it is Serve's own word).

    Raises ConfigError if it is unloaded, ClusterError with Serve's reason if the deployment does not take it; it is
    then told to serve what it did.
    """
    if not deployed.loaded:
        raise ConfigError(
            f"{deployed.name} at {deployed.address} is unloaded; load it first (POST /v2/repository/models/"
            f"{deployed.name}/load), it may name the variant"
        )
    changed = deployed.with_variant(variant_id)
    try:
        return _apply(deployed, changed, variant_id, timeout_s)
    except ClusterError as error:
        _put_back(deployed, error, timeout_s)
        raise ClusterError(
            f"{deployed.name} at {deployed.address} does not take variant {variant_id}: {error}; it serves "
            f"{deployed.variant} as before"
        ) from error
    except BaseException:  # interrupted: whoever did so does not want to wait
        with suppress(ClusterError):
            deploy_config(deployed.address, dict(deployed.config), timeout_s=0.0, only=deployed.name)
        raise


def _deployed(
    address: str, application: dict[str, Any], details: dict[str, Any], config: dict[str, Any]
) -> Deployed:
    """Raises KeyError, TypeError, StopIteration or ValidationError if it is no application of Sluice's."""
    if application["import_path"] != IMPORT_PATH:
        raise KeyError(application["import_path"])
    deployment = next(each for each in application["deployments"] if each["name"] == DEPLOYMENT)
    args, user_config = application["args"], deployment.get("user_config") or {}
    running = details["applications"][application["name"]].get("deployments", {}).get(DEPLOYMENT, {})
    prefix = (application.get("route_prefix") or "/").rstrip("/")
    urls = tuple(f"{proxy}{prefix}" for proxy in _proxies(address, details))
    return Deployed(
        address=address, name=application["name"], store=args["store"],
        variant=user_config.get("variant") or args["variant"], bound=args["variant"],
        runtime=RuntimeConfig.model_validate(user_config.get("runtime") or args.get("runtime") or {}),
        max_batch_size=user_config.get("max_batch_size"), loaded=user_config.get("loaded", True),
        num_replicas=max(1, len(running.get("replicas", []))), urls=urls, config=config,
    )  # fmt: skip


def _proxies(address: str, details: dict[str, Any]) -> list[str]:
    """http://host:port of each HTTP proxy, as seen from here."""
    host = (details.get("http_options") or {}).get("host") or "0.0.0.0"
    if host in _LOOPBACK and httpx.URL(address).host not in _LOOPBACK:
        return []  # they listen on another machine's loopback; what listens on ours is something else
    groups = [group for group in details.get("target_groups") or [] if group["protocol"] == "HTTP"]
    targets = [target for group in groups for target in group["targets"]]
    return [f"http://{target['ip'] if host in _ANY else host}:{target['port']}" for target in targets]


def _apply(deployed: Deployed, config: dict[str, Any], variant_id: str, timeout_s: float) -> int:
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        # Asked again it says why it could not: it may have called itself running before it tried.
        deploy_config(deployed.address, config, timeout_s=left, only=deployed.name, retries=False)
        answers = [_answers(f"{url}/v2/models/{deployed.name}", variant_id, deployed) for url in deployed.urls]
        if None not in answers:
            return sum(each or 0 for each in answers)
    raise ClusterError(f"after {timeout_s:g} s some replica still answers from another version")


def _answers(url: str, variant_id: str, deployed: Deployed) -> int | None:
    """How often in a row it named that version; 0 if nothing can be reached there, None if another one still answers.
    Each on a connection of its own, which may lead to another replica."""
    wanted = _ANSWERS_PER_REPLICA * deployed.num_replicas
    end, agreed = time.monotonic() + _PATIENCE_S, 0
    with httpx.Client(timeout=5.0, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        while agreed < wanted:
            try:
                answer = client.get(url)
                versions = answer.json().get("versions") if answer.status_code == 200 else None
            except (httpx.ConnectError, httpx.ConnectTimeout):
                return 0
            except (httpx.HTTPError, ValueError):
                versions = None
            agreed = agreed + 1 if versions == [variant_id] else 0
            if not agreed:
                if time.monotonic() > end:
                    return None
                time.sleep(0.02)
    return agreed


def _put_back(deployed: Deployed, refusal: ClusterError, timeout_s: float) -> None:
    try:
        deploy_config(deployed.address, dict(deployed.config), timeout_s=timeout_s, only=deployed.name)
    except ClusterError as error:
        raise ClusterError(
            f"{deployed.name} at {deployed.address} refused the new version ({refusal}) and does not go back to "
            f"{deployed.variant} either ({error}); deploy its config again"
        ) from error
