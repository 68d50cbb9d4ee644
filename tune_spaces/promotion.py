"""Variant -> the active one: may it be? Then the reference moves, the deployment follows, or the reference moves back.

Everything that can be known is found out before anything moves: a replica that cannot take a new version is restarted
by Serve, and does not answer meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.artifacts import ArtifactStore
from cluster.control.actuator import Deployed, switch
from cluster.errors import (
    ArtifactError,
    ConfigError,
    InferenceFailed,
    RefConflict,
    RuntimeUnavailable,
    VariantNotFound,
)
from cluster.releases import Release, Releases
from cluster.variants import Variant


def refuse_unfit(
    artifacts: ArtifactStore, variant: Variant, before: Variant | None, deployed: Deployed | None
) -> None:
    """Raise ConfigError unless the variant can take the place of the one before it, and its accuracy is known there."""
    if deployed is not None and not same_store(artifacts, deployed):
        raise ConfigError(
            f"{deployed.name} at {deployed.address} reads the store {deployed.store}, not {artifacts.root}; pass "
            f"--store {deployed.store}"
        )
    if before is not None and (variant.inputs, variant.outputs) != (before.inputs, before.outputs):
        raise ConfigError(
            f"variant {variant.name} ({variant.id}) has other inputs or outputs than {before.name}, which is active; "
            "promote it under a model name of its own (--model)"
        )
    if deployed is None:
        if variant.accuracy is None:
            raise ConfigError(f"variant {variant.name} ({variant.id}) was never measured; sluice compress measures it")
        return
    _try_out(artifacts, variant, deployed)
    if variant.accuracy_in(deployed.runtime.name) is None:
        known = ", ".join(accuracy.runtime for accuracy in variant.accuracies) or "no runtime at all"
        raise ConfigError(
            f"the accuracy of {variant.name} ({variant.id}) is not known on {deployed.runtime.name}, which serves "
            f"{deployed.name}; it was measured on {known}: deploy it with one of these, or measure it again"
        )


def _try_out(artifacts: ArtifactStore, variant: Variant, deployed: Deployed) -> None:
    """Load it here as a replica would. Raises ConfigError if it does not run; a runtime that is not installed here says
    nothing about the replicas."""
    from serve_apps.batcher import MAX_BATCH_SIZE
    from serve_apps.loading import load

    size = deployed.max_batch_size or MAX_BATCH_SIZE
    try:
        load(artifacts, variant, deployed.runtime, max_batch_size=size).close()
    except RuntimeUnavailable:
        return
    except (ArtifactError, InferenceFailed) as error:
        raise ConfigError(
            f"variant {variant.name} ({variant.id}) does not run on {deployed.runtime} in batches up to {size}, as "
            f"{deployed.name} is served: {error}"
        ) from error


def make_active(
    releases: Releases, model: str, variant: Variant, deployed: Deployed | None, move: Callable[[], Release]
) -> int:
    """Make the move, have the deployment follow, and take the move back if it does not; returns what `switch` does.

    Raises as `move` and `switch` do. Should be called in the model's `turn`.
    """
    active = releases.active(model)
    release = move()
    try:
        return switch(deployed, variant.id) if deployed is not None else 0
    except BaseException:
        if active != variant.id:  # else it was no move
            with suppress(RefConflict):  # somebody moved it without telling the deployment: theirs stays
                releases.undo(model, release)
        raise


def same_store(artifacts: ArtifactStore, deployed: Deployed) -> bool:
    """Does it read its variants from there?"""
    return Path(deployed.store).resolve() == artifacts.root.resolve()


def found(artifacts: ArtifactStore, ref: str | None) -> Variant | None:
    """The variant of that id or name, or None."""
    with suppress(VariantNotFound):
        return artifacts.get(ref) if ref is not None else None
    return None


def serving_of(artifacts: ArtifactStore, deployed: Deployed | None) -> Variant | None:
    """What answers now, as far as the store knows it."""
    return found(artifacts, deployed.variant) if deployed is not None else None
