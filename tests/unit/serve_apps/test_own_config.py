"""A change of one's own config: what goes along, what is refused, what is put back. Serve's controller is played by
`Controller`, with Serve's own schemas; tests/integration/test_repository.py has Serve itself."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank, ServeApplicationSchema, ServeDeploySchema

from cluster.errors import ClusterError, ConfigError, RefConflict
from serve_apps.own_config import OwnConfig

BEFORE = {"repository": True, "max_batch_size": 4}
AFTER = BEFORE | {"loaded": False}


def application(name: str, **deployment: Any) -> dict[str, Any]:
    return {
        "name": name, "route_prefix": f"/{name}", "import_path": "serve_apps.app:build", "args": {"model_name": name},
        "deployments": [{"name": "ModelDeployment", "num_replicas": 2} | deployment],
    }  # fmt: skip


class Controller:
    """Keeps what is applied as Serve does: what was said, without the defaults."""

    def __init__(self) -> None:
        self.submitted = {
            name: ServeApplicationSchema.model_validate(application(name, user_config=config)).model_dump(
                exclude_unset=True
            )
            for name, config in (("ours", BEFORE), ("other", {"max_batch_size": 9}))
        }
        self.target_capacity: float | None = 50.0
        self.applied: list[Any] = []
        self.states = [("RUNNING", "HEALTHY", "")]
        """Of our application, its deployment, and why; the last one stays."""
        self.looked: Callable[[], None] = lambda: None

    @property
    def user_config(self) -> Any:
        return self.submitted["ours"]["deployments"][0]["user_config"]

    @user_config.setter
    def user_config(self, config: Any) -> None:
        self.submitted["ours"]["deployments"][0]["user_config"] = config

    async def get_app_configs(self) -> dict[str, ServeApplicationSchema]:
        return {name: ServeApplicationSchema.model_validate(config) for name, config in self.submitted.items()}

    async def get_serve_instance_details(self) -> dict[str, Any]:
        self.looked()
        status, of_deployment, why = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        deployments = {"ModelDeployment": {"status": of_deployment, "message": why}}
        return {
            "target_capacity": self.target_capacity,
            "applications": {"ours": {"status": status, "message": "", "deployments": deployments}},
        }

    async def apply_config(self, config: ServeDeploySchema) -> None:
        self.target_capacity = config.target_capacity
        self.submitted = {each.name: each.model_dump(exclude_unset=True) for each in config.applications}
        self.applied.append(self.user_config)


class Remote:
    """An actor's methods are called by `.remote`."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def __getattr__(self, method: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self._controller, method))})


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one, of the deployment ModelDeployment of the application `ours`."""
    monkeypatch.setattr(context, "_INTERNAL_REPLICA_CONTEXT", None)
    context._set_internal_replica_context(
        replica_id=ReplicaID("r1", DeploymentID("ModelDeployment", "ours")), servable_object=print,
        _deployment_config=DeploymentConfig(), rank=ReplicaRank(rank=0, node_rank=0, local_rank=0), world_size=2,
    )  # fmt: skip


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def own(controller: Controller) -> OwnConfig:
    config = OwnConfig()
    config._found = Remote(controller)
    return config


def change(own: OwnConfig, arrived: Callable[[], bool] = lambda: True, timeout_s: float = 20.0) -> None:
    asyncio.run(own.change(BEFORE, AFTER, arrived=arrived, timeout_s=timeout_s))


def test_it_is_read_as_it_was_submitted(own: OwnConfig, controller: Controller) -> None:
    assert asyncio.run(own.read()) == BEFORE
    del controller.submitted["ours"]["deployments"][0]["user_config"]
    assert asyncio.run(own.read()) == {}


def test_all_else_goes_along_as_it_was_submitted(own: OwnConfig, controller: Controller) -> None:
    before = copy.deepcopy(controller.submitted)
    change(own)
    assert controller.applied == [AFTER]
    assert controller.target_capacity == 50.0
    controller.user_config = BEFORE
    assert controller.submitted == before


def test_it_has_arrived_once_this_replica_has_it_and_serve_is_done(own: OwnConfig, controller: Controller) -> None:
    told: list[str] = []
    controller.states = [
        ("RUNNING", "HEALTHY", ""),  # asked by `change` itself
        ("RUNNING", "HEALTHY", ""),
        ("DEPLOYING", "UPDATING", ""),
        ("RUNNING", "UPDATING", ""),
        ("RUNNING", "HEALTHY", ""),
    ]
    controller.looked = lambda: told.append(controller.states[0][0])
    change(own, arrived=lambda: len(told) >= 2)
    assert told == ["RUNNING", "RUNNING", "DEPLOYING", "RUNNING", "RUNNING"], "the first is from before it began"


def test_another_config_than_the_one_that_was_read_is_not_written_over(own: OwnConfig, controller: Controller) -> None:
    controller.user_config = theirs = BEFORE | {"max_batch_size": 8}
    with pytest.raises(RefConflict, match="somebody else changed"):
        change(own)
    assert (controller.user_config, controller.applied) == (theirs, [])


def test_what_somebody_else_applies_meanwhile_stays(own: OwnConfig, controller: Controller) -> None:
    theirs = BEFORE | {"max_batch_size": 8}

    def overtake() -> None:
        if controller.applied:
            controller.user_config = theirs

    controller.states, controller.looked = [("DEPLOYING", "UPDATING", "")], overtake
    with pytest.raises(RefConflict, match="meanwhile"):
        change(own)
    assert (controller.user_config, controller.applied) == (theirs, [AFTER])


FAILED = "Traceback (most recent call last):\n  File \"x\"\nConfigError: the variant does not run"


@pytest.mark.parametrize("state", [("DEPLOY_FAILED", "UPDATING", FAILED), ("UNHEALTHY", "UNHEALTHY", FAILED),
                                   ("DEPLOYING", "UPDATING", f"a replica failed: {FAILED}")])  # fmt: skip
def test_what_a_replica_does_not_take_is_put_back(
    own: OwnConfig, controller: Controller, state: tuple[str, str, str]
) -> None:
    controller.states = [("RUNNING", "HEALTHY", ""), state]
    with pytest.raises(ClusterError, match=r"does not take it: .*the variant does not run") as told:
        change(own, arrived=lambda: False)
    assert "File" not in str(told.value)
    assert (controller.user_config, controller.applied) == (BEFORE, [AFTER, BEFORE])


def test_what_does_not_arrive_in_time_is_put_back(own: OwnConfig, controller: Controller) -> None:
    with pytest.raises(ClusterError, match="'ours' is RUNNING and some replica has not taken it yet"):
        change(own, arrived=lambda: False, timeout_s=0.25)
    assert controller.applied == [AFTER, BEFORE]


def test_a_controller_that_is_gone_is_told_as_such(own: OwnConfig, controller: Controller) -> None:
    def gone() -> None:
        raise RayActorError

    controller.looked = gone
    with pytest.raises(ClusterError, match="does not answer get_serve_instance_details"):
        change(own)
    assert controller.applied == []


@pytest.mark.parametrize("missing", ["application", "deployment"])
def test_without_a_config_there_is_nothing_to_change(own: OwnConfig, controller: Controller, missing: str) -> None:
    if missing == "application":
        del controller.submitted["ours"]
    else:
        controller.submitted["ours"]["deployments"] = []
    with pytest.raises(ConfigError, match="'ours' was not deployed from a Serve config that names ModelDeployment"):
        asyncio.run(own.read())


def test_outside_a_replica_it_says_so(own: OwnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_INTERNAL_REPLICA_CONTEXT", None)
    with pytest.raises(ConfigError, match="served by no Serve deployment"):
        asyncio.run(own.read())
