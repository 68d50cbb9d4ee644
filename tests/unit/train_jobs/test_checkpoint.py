"""Checkpoints: whole or not there at all, read without running anything, refused if they are not ours."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cluster.errors import TrainingFailed
from tests.unit.train_jobs import gloo, scenarios
from train_jobs import checkpoint

# Starts a writer, kills it at a random moment, looks at what is left; fork after `import torch`, which is dear.
KILL_ROUNDS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from train_jobs import checkpoint

torch.set_num_threads(1)
folder, rounds, halfway, newest = Path(sys.argv[1]), 20, 0, 0
checkpoint.save({"n": 0, "weights": torch.full((2_000_000,), 0.0)}, folder, step=0)
for _ in range(rounds):
    child = os.fork()
    if not child:
        writer = checkpoint.Writer(folder)
        for n in range(newest + 1, newest + 1000):
            writer.write({"n": n, "weights": torch.full((2_000_000,), float(n))}, n)
    time.sleep(random.uniform(0.02, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    halfway += any(not (each / ".metadata").exists() for each in folder.iterdir())
    state = checkpoint.load(folder)
    assert state is not None, "the checkpoint is gone"
    assert bool((state["weights"] == state["n"]).all()), "parts of two checkpoints in one"
    assert state["n"] >= newest, "an older checkpoint came back"
    newest = state["n"]
print(halfway, newest)
"""


def test_kill_9_while_saving_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_ROUNDS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    halfway, newest = map(int, done.stdout.split())
    assert halfway > 0, "no kill hit a checkpoint half written: the test proved nothing"
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
    checkpoint.save(state, tmp_path / "new" / "folder", step=7)
    loaded = checkpoint.load(tmp_path / "new" / "folder")
    assert loaded is not None
    assert torch.equal(loaded["weights"]["weight"], model.weight)
    optimizer.load_state_dict(loaded["optimizer"])
    schedule.load_state_dict(loaded["schedule"])
    assert (loaded["epoch"], loaded["history"][0]["loss"]) == (3, 0.5)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None


def test_the_newest_is_loaded_and_the_last_two_are_kept(tmp_path: Path) -> None:
    writer = checkpoint.Writer(tmp_path)
    for step in (1, 2, 30):
        writer.write({"step": step, "weights": torch.full((4,), float(step))}, step)
    writer.wait()
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert (loaded["step"], loaded["weights"].tolist()) == (30, [30.0] * 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000030"]


def test_what_changes_while_it_is_written_is_not_in_it(tmp_path: Path) -> None:
    weights = torch.zeros(4_000_000)
    writer = checkpoint.Writer(tmp_path)
    writer.write({"weights": weights}, 1)
    weights += 1  # training goes on at once
    writer.wait()
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert float(loaded["weights"].abs().sum()) == 0.0


def test_scalars_keys_and_layouts_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"scalar": torch.tensor(3.5), "by_number": {0: torch.arange(6).reshape(2, 3), 1: None},
             "flags": [True, 1.5],
             "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "empty": {}}  # fmt: skip
    checkpoint.save(state, tmp_path, step=1)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded["scalar"].shape == ()
    assert loaded["by_number"][1] is None
    assert torch.equal(loaded["by_number"][0], state["by_number"][0])  # type: ignore[index]
    assert torch.equal(loaded["last"], state["last"])
    assert (loaded["flags"], loaded["empty"]) == ([True, 1.5], {})


def test_a_folder_half_written_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save({"n": 1}, tmp_path, step=1)
    half = tmp_path / "step-000000002"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    assert checkpoint.load(tmp_path) == {"n": 1}
    checkpoint.save({"n": 2}, tmp_path, step=2)
    assert checkpoint.load(tmp_path) == {"n": 2}


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_garbage_is_refused_with_a_way_out(tmp_path: Path, file: str, content: bytes) -> None:
    checkpoint.save({"weights": torch.ones(1000)}, tmp_path, step=1)
    (tmp_path / "step-000000001" / file).write_bytes(content)
    with pytest.raises(TrainingFailed, match=r"step-000000001 is no checkpoint .*; delete it to go on from the one"):
        checkpoint.load(tmp_path)


def test_what_one_worker_saved_two_can_read_and_the_other_way_round(tmp_path: Path) -> None:
    gloo.run(scenarios.save_together, tmp_path, world_sizes=(2,))
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert [int(loaded[f"w{i}"].sum()) for i in range(6)] == [1000 * i for i in range(6)]
    shares = list((tmp_path / "step-000000005").glob("*.distcp"))
    assert len(shares) == 2, "each worker wrote a part of it"
    assert loaded["clock"] == 0, "numbers are the leader's"


class _Bomb:
    """Unpickling this makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickled_object_is_refused_and_never_run(tmp_path: Path) -> None:
    checkpoint.save({"weights": torch.ones(3)}, tmp_path, step=1)
    bomb = pickle.dumps(_Bomb(tmp_path / "boom"))
    (tmp_path / "step-000000001" / ".metadata").write_bytes(bomb)
    with pytest.raises(TrainingFailed, match="is no checkpoint"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "boom").exists()
    pickle.loads(bomb)
    assert (tmp_path / "boom").exists(), "the bomb works: only the refusal kept it from going off"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.distributed.checkpoint.filesystem", "os.system"),  # a walk through what torch's module imports
        ("torch.distributed.checkpoint.filesystem", "os"),
        ("torch.distributed.checkpoint.format_utils", "torch_save_to_dcp"),  # unpickles a file itself
        ("torch.distributed.checkpoint.filesystem", "FileSystemWriter"),
        ("torch", "load"),
        ("builtins", "eval"),
    ],
)
def test_nothing_that_acts_is_found_in_a_table_of_contents(module: str, name: str, tmp_path: Path) -> None:
    checkpoint.save({"weights": torch.ones(3)}, tmp_path, step=1)
    text = b"".join(pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name))
    table = pickle.PROTO + bytes([4]) + text + pickle.STACK_GLOBAL + pickle.STOP
    assert pickle.loads(table) is not None, "there is such a thing to be found"
    (tmp_path / "step-000000001" / ".metadata").write_bytes(table)
    with pytest.raises(TrainingFailed, match=r"is no checkpoint \(UnpicklingError\)"):
        checkpoint.load(tmp_path)


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
    checkpoint.save({"n": 1}, tmp_path, step=1)
    with (
        files_no_larger_than(1 << 20),
        pytest.raises(TrainingFailed, match=r"cannot write .*step-000000002 .*the checkpoint before it is intact"),
    ):
        checkpoint.save({"n": 2, "weights": torch.ones(1 << 20)}, tmp_path, step=2)
    assert checkpoint.load(tmp_path) == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"], "no half-written one stays"


def test_a_folder_that_cannot_be_made_fails_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingFailed, match=r"cannot write .*file/under/step"):
        checkpoint.save({"n": 1}, tmp_path / "file" / "under", step=1)
