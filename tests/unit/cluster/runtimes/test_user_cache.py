"""The folder from which machine code is loaded is the user's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import RuntimeUnavailable
from cluster.runtimes.user_cache import user_cache


def test_it_is_made_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = user_cache("things")
    assert folder == tmp_path / "sluice/things"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert user_cache("things") == folder


def test_without_the_variable_it_lies_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache("things") == tmp_path / ".cache/sluice/things"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_one_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    user_cache("things").chmod(mode)
    with pytest.raises(RuntimeUnavailable, match=r"written by others, .*chmod go-w"):
        user_cache("things")


def test_one_that_cannot_be_made_says_which_variable_moves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sluice").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match=r"cannot be made .*set XDG_CACHE_HOME"):
        user_cache("things")
