"""`build(args)`: what a Serve config's import_path names. Nothing happens at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import ConfigError
from cluster.runtimes.base import RuntimeConfig

if TYPE_CHECKING:
    from ray.serve import Application


class AppArgs(BaseModel):
    """`args` of the application in the Serve config."""

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(default="classifier", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """A part of URLs as it is: no slash, nothing to encode, and no leading dot that clients would fold away."""
    store: str = Field(min_length=1)
    """Path of the artifact store as the replicas see it."""
    variant: str = Field(min_length=1)
    """Variant id or name."""
    runtime: RuntimeConfig = RuntimeConfig()
    also: tuple[str, ...] = ()
    """Variants that are resident beside it, in the same runtime."""
    executors: int = Field(default=1, ge=1, le=64)
    """Threads that execute batches side by side, each with a copy of every resident variant."""
    direct_port: int | None = Field(default=None, ge=1, le=65535)
    """A port on which each replica is reached without a proxy; it must be this application's alone."""


def wrong_fields(error: ValidationError, whole: str) -> str:
    """Each wrong field with its value and what is wrong with it; `whole` names what has no fields at all."""
    wrong = []
    for each in error.errors():
        field = ".".join(map(str, each["loc"])) or whole
        value = "" if each["type"] == "missing" else f"={str(each['input'])[:80]!r}"
        wrong.append(f"{field}{value}: {each['msg']}")
    return "; ".join(wrong)


def build(args: dict[str, Any]) -> Application:
    """The application; it touches neither store nor variant. Raises ConfigError naming each wrong field."""
    try:
        parsed = AppArgs.model_validate(args)
    except ValidationError as error:
        raise ConfigError(
            f"args of serve_apps.app:build are not valid ({wrong_fields(error, 'args')}); the fields are "
            f"{', '.join(AppArgs.model_fields)}: `sluice serve --dry-run` prints a complete config"
        ) from error
    from serve_apps.deployment import ModelDeployment

    app: Application = ModelDeployment.bind(
        parsed.model_name, parsed.store, parsed.variant, parsed.runtime.model_dump(mode="json"), parsed.also,
        parsed.executors, parsed.direct_port,
    )
    return app
