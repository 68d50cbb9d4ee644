"""A torch archive from outside can neither unpickle nor run anything: each attack works on torch's own reader (that is
checked first), and is refused by ours before it has done anything."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cluster.errors import ArtifactError
from cluster.runtimes.torch_archive import load_pickle_free, save_pickle_free
from tests.unit.cluster.runtimes.archives import (
    CONSTANTS,
    EXAMPLE,
    GRAPH,
    SAMPLES,
    WEIGHTS,
    Attack,
    Entries,
    Model,
    export,
    packed,
    refused_though_torch_falls_for_it,
    tampered,
    trap_pickle,
    trap_torch,
    unpacked,
)


def test_what_was_saved_computes_the_same(ours: bytes) -> None:
    model, program = Model().eval(), load_pickle_free(ours)
    for rows in (1, 2, 3, 9):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(program.module()(x), model(x))


def test_saving_twice_gives_the_same_bytes_and_no_path_of_this_machine(ours: bytes) -> None:
    assert save_pickle_free(export(Model(), EXAMPLE)) == ours
    assert b".py" not in ours
    assert str(Path(__file__).parent.parent).encode() not in ours


def test_nothing_is_unpickled_on_load_by_pythons_own_account(ours: bytes, tmp_path: Path) -> None:
    (tmp_path / "ours.pt2").write_bytes(ours)
    code = (
        "import sys, pathlib, torch\n"
        "from cluster.runtimes.torch_archive import load_pickle_free\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append(args) if event == 'pickle.find_class' else None)\n"
        "load_pickle_free(data).module()(torch.zeros(2, 4))\n"
        "ours = len(seen)\n"
        "import pickle; pickle.loads(pickle.dumps(pathlib.PurePosixPath('x')))\n"
        "print(ours, len(seen) > ours)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ours.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "True"], done.stderr


def in_the_example_inputs(data: bytes, path: Path) -> Entries:
    return unpacked(data) | {SAMPLES: trap_torch(path)}


def under_another_case(data: bytes, path: Path) -> Entries:
    """torch's zip reader finds names in either case."""
    entries = unpacked(data)
    del entries[SAMPLES]
    return entries | {"archive/data/SAMPLE_INPUTS/model.PT": trap_torch(path)}


def in_a_weight_called_pickled(data: bytes, path: Path) -> Entries:
    def change(table: dict[str, Any]) -> None:
        table["config"]["linear.weight"] |= {"use_pickle": True, "path_name": "weight_9"}

    return tampered(data, WEIGHTS, change) | {"archive/data/weights/weight_9": trap_torch(path)}


def in_legacy_weights(data: bytes, path: Path) -> Entries:
    return unpacked(data) | {"archive/data/weights/model.pt": trap_torch(path)}


def in_legacy_constants(data: bytes, path: Path) -> Entries:
    return unpacked(data) | {"archive/data/constants/model.pt": trap_torch(path)}


def in_an_opaque_constant(data: bytes, path: Path) -> Entries:
    def change(table: dict[str, Any]) -> None:
        meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        table["config"]["evil"] = meta

    return tampered(data, CONSTANTS, change) | {"archive/data/constants/opaque_obj_0": trap_pickle(path)}


def in_an_opaque_constant_that_calls_itself_raw(data: bytes, path: Path) -> Entries:
    """torch goes by the payload's prefix, whatever the table says of it."""

    def change(table: dict[str, Any]) -> None:
        meta = next(iter(table["config"].values()))
        as_bytes = meta["tensor_meta"] | {"dtype": 1}
        table["config"]["evil"] = meta | {"path_name": "opaque_obj_0/tensor_0", "tensor_meta": as_bytes}

    return tampered(data, CONSTANTS, change) | {"archive/data/constants/opaque_obj_0/tensor_0": trap_pickle(path)}


def in_the_format_of_torch_2_6(data: bytes, path: Path) -> Entries:
    return {
        "version": b"8.8",
        "serialized_exported_program.json": unpacked(data)[GRAPH],
        "serialized_state_dict.json": trap_torch(path),
        "serialized_constants.json": b"",
        "serialized_example_inputs.pt": b"",
    }


@pytest.mark.parametrize(
    "attack",
    [
        in_the_example_inputs,
        under_another_case,
        in_a_weight_called_pickled,
        in_legacy_weights,
        in_legacy_constants,
        in_an_opaque_constant,
        in_an_opaque_constant_that_calls_itself_raw,
        in_the_format_of_torch_2_6,
    ],
    ids=lambda attack: attack.__name__,
)
def test_an_attack_that_torch_falls_for_is_refused(attack: Attack, ours: bytes, tmp_path: Path) -> None:
    refused_though_torch_falls_for_it(attack, ours, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/aotinductor/model/model.so",
        "archive/data/aotinductor/model/wrapper.cpp",
        "archive/data/constants/custom_obj_0",
        "archive/data/constants/tensor_0.pt",
        "archive/data/weights/weight_0/../weight_1",
        "archive/data/weights/weight_1\n",
        "archive/Data/weights/weight_1",
        "archive/models/other.json",
        "archive/extra/notes.txt",
        "../outside",
        "serialized_state_dict.pt",
        "",
    ],
)
def test_entries_that_are_not_on_the_list_are_refused(name: str, ours: bytes) -> None:
    with pytest.raises(ArtifactError, match="torch archive holds"):
        load_pickle_free(packed(unpacked(ours) | {name: b"\0" * 4}))


def test_two_entries_of_one_name_are_refused(ours: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO(ours)
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(SAMPLES, trap_torch(tmp_path / "never"))
    with pytest.raises(ArtifactError, match="two entries"):
        load_pickle_free(buffer.getvalue())
    # A NUL ends a name for one zip reader and not for another.
    with pytest.raises(ArtifactError):
        load_pickle_free(buffer.getvalue().replace(SAMPLES.encode(), SAMPLES.encode()[:-3] + b"\0pt", 1))
    assert not (tmp_path / "never").exists()


def test_an_archive_hidden_before_or_behind_ours_is_never_seen(ours: bytes, tmp_path: Path) -> None:
    evil = packed(in_the_example_inputs(ours, tmp_path / "never"))
    for data in (evil + ours, ours + evil, evil + b"junk" + ours):
        try:
            load_pickle_free(data).module()(EXAMPLE)
        except ArtifactError as error:
            print(f"refused: {error}")
    assert not (tmp_path / "never").exists()


def test_compressed_entries_are_refused(ours: bytes) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in unpacked(ours).items():
            archive.writestr(name, content)
    with pytest.raises(ArtifactError, match="compressed"):
        load_pickle_free(buffer.getvalue())


@pytest.mark.parametrize("missing", [GRAPH, SAMPLES, WEIGHTS, CONSTANTS, "archive/archive_format"])
def test_an_incomplete_archive_is_refused(missing: str, ours: bytes) -> None:
    entries = unpacked(ours)
    del entries[missing]
    with pytest.raises(ArtifactError, match="export the variant"):
        load_pickle_free(packed(entries))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b'{"config": 3}', b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_broken_json_is_refused(name: str, content: bytes, ours: bytes) -> None:
    with pytest.raises(ArtifactError):
        load_pickle_free(packed(unpacked(ours) | {name: content}))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_ends_in_our_own_error_or_in_the_same_answer(ours: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(ours)))
    at = data.draw(st.integers(0, len(ours) - 1))
    flipped = ours[:at] + bytes([ours[at] ^ data.draw(st.integers(1, 255))]) + ours[at + 1 :]
    broken = data.draw(st.sampled_from([ours[:cut], flipped, ours[:cut] + ours[at:]]))
    try:
        program = load_pickle_free(broken)
    except ArtifactError:
        return
    torch.testing.assert_close(program.module()(EXAMPLE), Model().eval()(EXAMPLE))


def test_a_program_that_torch_can_only_pickle_is_not_saved() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.eye(4).to_sparse())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.get_buffer("matrix").to_dense()

    with pytest.raises(ArtifactError, match="dense tensors"):
        save_pickle_free(export(Sparse(), EXAMPLE))
