"""Which variant of a model is the active one, and which ones were before: promote, roll back, look back.

    root/refs/active/<model>      the variant id; moved by compare-and-swap like any reference
    root/history/<model>.json     the moves that led there, oldest first

The reference decides; the history explains it. Both are written under the store's lock, the history first. Each move
names the id that it left, so a kill -9 between the two writes is seen and undone: a last move that left the very id
that the reference still has was never made. A reference that somebody set by hand is taken as one more move.

    >>> releases.promote("classifier", fp32.id)        # doctest: +SKIP
    >>> releases.promote("classifier", int8.id, expected=fp32.id)
    >>> releases.rollback("classifier")                # fp32 again; another rollback has nowhere to go
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.artifacts import ANYTHING, Anything, ArtifactStore
from cluster.errors import ChecksumMismatch, ConfigError, RefConflict, VariantNotFound
from cluster.variants import canonical_sha256

PREFIX = "active/"
KEPT_MOVES = 200
"""Older moves are forgotten; rollbacks end there."""
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_Kind = Literal["promote", "rollback", "found"]


class Release(BaseModel):
    """One move of the active version. `number` counts them from 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1)
    variant_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    previous_id: str | None
    """Active until then."""
    before: int | None
    """The release that a rollback from here goes back to. A rollback takes over that of the release it goes back to,
    so one rollback after another goes further back, not to and fro."""
    kind: _Kind
    """found: the reference was there, or had been set by hand."""
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class _History(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    releases: tuple[Release, ...]
    checksum: str = ""

    def digest(self) -> str:
        return canonical_sha256(self.model_dump(mode="json", exclude={"checksum"}))


class Releases:
    """The active versions of one store. Creating the object touches nothing."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def active(self, model_name: str) -> str | None:
        """The id of the active variant; None if none was ever promoted. Raises ConfigError for a bad name."""
        return self._store.ref(_reference(model_name))

    def models(self) -> dict[str, str]:
        """Active variant ids by model name."""
        refs = self._store.refs().items()
        return {name.removeprefix(PREFIX): id_ for name, id_ in refs if name.startswith(PREFIX)}

    def history(self, model_name: str) -> list[Release]:
        """The moves that led to what is active now, oldest first. Raises ChecksumMismatch for a damaged file."""
        return self._settled(self._read(model_name), self.active(model_name))

    def past_models(self) -> list[str]:
        """Names with a history, active or not."""
        return sorted(path.stem for path in self._store.root.glob("history/*.json"))

    def promote(
        self, model_name: str, variant_id: str, *, expected: str | Anything | None = ANYTHING,
        serving: str | None = None,
    ) -> Release:  # fmt: skip
        """Make the variant the active one, if `expected` is it now (None: there is none yet).

        `serving` is what answers although nothing was ever promoted: a rollback goes back to it. Promoting what is
        active already is no move and returns the last one. Raises RefConflict when somebody else was first,
        VariantNotFound, ConfigError for a bad name.
        """
        name = _reference(model_name)
        self._store.check_ref(name, variant_id)
        with self._store.changing():
            active = self.active(model_name)
            if not isinstance(expected, Anything) and active != expected:
                raise RefConflict(
                    f"{model_name}: active is {active}, not {expected}; somebody else moved it: look and decide anew"
                )
            past = self._settled(self._read(model_name), active)
            if active == variant_id:
                return past[-1]
            if active is None and serving is not None and serving != variant_id:
                past.append(_next(past, serving, None, None, "found"))
            before = past[-1].number if past else None
            return self._move(model_name, past, _next(past, variant_id, active, before, "promote"))

    def target(self, model_name: str) -> Release:
        """Where a rollback would go back to. Raises ConfigError if there is nothing before the active version,
        VariantNotFound if that variant is no longer in the store."""
        return self._target(model_name, self.history(model_name))

    def rollback(self, model_name: str, *, expected: str | Anything | None = ANYTHING) -> Release:
        """Go back to the version before the active one. Raises as `target` does, and RefConflict as `promote`."""
        with self._store.changing():
            active = self.active(model_name)
            if not isinstance(expected, Anything) and active != expected:
                raise RefConflict(f"{model_name}: active is {active}, not {expected}; look and decide anew")
            past = self._settled(self._read(model_name), active)
            target = self._target(model_name, past)
            return self._move(model_name, past, _next(past, target.variant_id, active, target.before, "rollback"))

    def undo(self, model_name: str, release: Release) -> None:
        """Take the last move back, as if it had never been made. Raises RefConflict if it is no longer the last."""
        with self._store.changing():
            past = self._settled(self._read(model_name), self.active(model_name))
            if not past or past[-1] != release:
                raise RefConflict(f"{model_name}: release {release.number} is no longer the last; look and decide anew")
            # The reference first: killed here, the history ends in a move that was never made.
            self._store.write_ref(_reference(model_name), release.previous_id)
            self._write(model_name, past[:-1])

    @contextmanager
    def turn(self, model_name: str) -> Iterator[None]:
        """One at a time, for who moves the active version and then tells a deployment: the deployment must not end with
        the version of one and the reference with that of another."""
        _reference(model_name)
        with self._store.folder.lock(f".turn-{model_name}"):
            yield

    def reachable(self, model_name: str, keep: int) -> set[str]:
        """Variant ids of the last `keep` moves and of what the next `keep` rollbacks would go back to."""
        past = self.history(model_name)
        found = {release.variant_id for release in past[-keep:]} if keep else set()
        by_number = {release.number: release for release in past}
        at = past[-1] if past else None
        for _ in range(keep):
            at = by_number.get(at.before or 0) if at else None
            found |= {at.variant_id} if at else set()
        return found

    def _target(self, model_name: str, past: list[Release]) -> Release:
        number = past[-1].before if past else None
        target = next((release for release in past if release.number == number), None)
        if target is None:
            active = past[-1].variant_id if past else "nothing"
            raise ConfigError(
                f"{model_name}: active is {active}, and there is no version before it to roll back to; promote another"
            )
        if not self._store.manifest_path(target.variant_id).exists():
            raise VariantNotFound(
                f"{model_name}: the version before was {target.variant_id}, which is no longer in {self._store.root}; "
                "promote another"
            )
        return target

    def _move(self, model_name: str, past: list[Release], move: Release) -> Release:
        name = _reference(model_name)
        self._store.check_ref(name, move.variant_id)
        self._write(model_name, [*past, move])
        self._store.write_ref(name, move.variant_id)
        return move

    @staticmethod
    def _settled(past: list[Release], active: str | None) -> list[Release]:
        """What really happened: moves that were never made taken away, one made by hand added."""
        settled = list(past)
        while settled and settled[-1].variant_id != active and settled[-1].previous_id == active:
            settled.pop()
        if active is not None and (not settled or settled[-1].variant_id != active):
            last = settled[-1] if settled else None
            settled.append(
                _next(settled, active, last.variant_id if last else None, last.number if last else None, "found")
            )
        return settled

    def _path(self, model_name: str) -> Path:
        return self._store.root / "history" / f"{model_name}.json"

    def _read(self, model_name: str) -> list[Release]:
        path = self._path(model_name)
        try:
            history = _History.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return []
        except (ValidationError, ValueError) as error:
            raise ChecksumMismatch(f"{path} is no history ({error}); delete it, only rollbacks are lost") from error
        if history.checksum != history.digest():
            raise ChecksumMismatch(f"{path} is not as it was written; delete it, only rollbacks are lost")
        return list(history.releases)

    def _write(self, model_name: str, releases: list[Release]) -> None:
        history = _History(releases=tuple(releases[-KEPT_MOVES:]))
        history = history.model_copy(update={"checksum": history.digest()})
        self._store.folder.write(self._path(model_name), history.model_dump_json(indent=1).encode())


def _reference(model_name: str) -> str:
    if not _MODEL.fullmatch(model_name):
        raise ConfigError(f"model name {model_name!r} is not allowed; use letters, digits, . _ and -")
    return PREFIX + model_name


def _next(past: list[Release], variant_id: str, previous_id: str | None, before: int | None, kind: _Kind) -> Release:
    number = past[-1].number + 1 if past else 1
    return Release(number=number, variant_id=variant_id, previous_id=previous_id, before=before, kind=kind)
