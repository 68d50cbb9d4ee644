"""Checkpoints: whole or not there at all, read without running anything, refused if they are not ours."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cluster.errors import TrainingFailed
from train_jobs import checkpoint

# Forks a writer, kills it at a random moment, looks at what is left; the parent process pays for `import torch` once.
KILL_ROUNDS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from train_jobs import checkpoint

torch.set_num_threads(1)
folder, rounds, halfway, newest = Path(sys.argv[1]), 25, 0, 0
checkpoint.save({"n": 0, "weights": torch.full((2_000_000,), 0.0)}, folder)
for _ in range(rounds):
    child = os.fork()
    if not child:
        for n in range(newest + 1, newest + 1000):
            checkpoint.save({"n": n, "weights": torch.full((2_000_000,), float(n))}, folder)
    time.sleep(random.uniform(0.01, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    halfway += (folder / ".state.pt.unfinished").exists()
    state = checkpoint.load(folder)
    assert state is not None, "the checkpoint is gone"
    assert bool((state["weights"] == state["n"]).all()), "parts of two checkpoints in one file"
    assert state["n"] >= newest, "an older checkpoint came back"
    newest = state["n"]
print(halfway, newest)
"""


def test_kill_9_while_saving_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_ROUNDS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    halfway, newest = map(int, done.stdout.split())
    assert halfway > 0, "no kill hit a file half written: the test proved nothing"
    assert newest > 0, "no save ever finished: the test proved nothing"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    state = {
        "weights": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "epoch": 3, "history": [{"loss": 0.5, "val_accuracy": float("nan")}],
    }  # fmt: skip
    checkpoint.save(state, tmp_path / "new" / "folder")
    loaded = checkpoint.load(tmp_path / "new" / "folder")
    assert loaded is not None
    assert torch.equal(loaded["weights"]["weight"], model.weight)
    optimizer.load_state_dict(loaded["optimizer"])
    schedule.load_state_dict(loaded["schedule"])
    assert (loaded["epoch"], loaded["history"][0]["loss"]) == (3, 0.5)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04 half a zip"])
def test_garbage_is_refused_with_a_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / checkpoint.FILE).write_bytes(content)
    with pytest.raises(TrainingFailed, match=r"state\.pt is no checkpoint .*; delete it to start anew"):
        checkpoint.load(tmp_path)


def test_half_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save({"weights": torch.ones(1000)}, tmp_path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(TrainingFailed, match="is no checkpoint"):
        checkpoint.load(tmp_path)


def test_something_else_than_a_state_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / checkpoint.FILE)
    with pytest.raises(TrainingFailed, match="holds a list, not a checkpoint"):
        checkpoint.load(tmp_path)


class _Bomb:
    """Unpickling this makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickled_object_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"weights": _Bomb(tmp_path / "boom")}, tmp_path / checkpoint.FILE)
    with pytest.raises(TrainingFailed, match="is no checkpoint"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "boom").exists()
    torch.load(tmp_path / checkpoint.FILE, weights_only=False)
    assert (tmp_path / "boom").exists(), "the bomb works: only the refusal kept it from going off"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk does to a write, done by the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_fails_with_a_way_out_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint.save({"n": 1}, tmp_path)
    with (
        files_no_larger_than(1 << 20),
        pytest.raises(TrainingFailed, match=r"cannot write .*state\.pt .*the checkpoint before it is intact"),
    ):
        checkpoint.save({"n": 2, "weights": torch.ones(1 << 20)}, tmp_path)
    assert checkpoint.load(tmp_path) == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE], "no half-written file stays"


def test_a_folder_that_cannot_be_made_fails_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingFailed, match=r"cannot write .*file/under/state"):
        checkpoint.save({}, tmp_path / "file" / "under")
