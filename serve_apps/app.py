"""`build(args)`: what a Serve config's import_path names. Nothing happens at import."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray.serve import Application

from cluster.errors import ConfigError
from cluster.runtimes.base import RuntimeConfig


class AppArgs(BaseModel):
    """`args` of the application in the Serve config."""

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(default="classifier", pattern=r"^[A-Za-z0-9._-]+$")
    store: str
    """Path of the artifact store as the replicas see it."""
    variant: str
    """Variant id or name."""
    runtime: RuntimeConfig = RuntimeConfig()


def build(args: dict[str, Any]) -> Application:
    """The application. Raises ConfigError naming the wrong field."""
    from serve_apps.deployment import ModelDeployment

    try:
        parsed = AppArgs.model_validate(args)
    except ValidationError as error:
        raise ConfigError(f"args of serve_apps.app:build are not valid: {error}") from error
    app: Application = ModelDeployment.bind(
        parsed.model_name, parsed.store, parsed.variant, parsed.runtime.model_dump(mode="json")
    )
    return app
