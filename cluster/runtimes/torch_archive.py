"""torch.export program <-> bytes, without a pickle on either side.

torch's own archive keeps weights raw and the graph as JSON, but adds the example inputs as a pickle, and its reader
unpickles or runs much that an archive may hold: legacy weights, script objects, compiled libraries, payloads that the
archive's own tables call pickled. So the writer keeps the raw part alone, and the reader takes only the entries listed
below and hands torch a new archive of them: torch's zip reader, which finds names in either case and its own way among
duplicates, never sees the bytes that came from outside. What the graph's JSON may say is torch_graph.py's matter.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

import torch
from torch.export import ExportedProgram

from cluster.errors import ArtifactError
from cluster.runtimes.torch_graph import refuse_code, without_notes

_GRAPH = "archive/models/model.json"
_SAMPLES = "archive/data/sample_inputs/model.pt"
_TABLES = {
    "archive/data/weights/model_weights_config.json": re.compile(r"weight_\d+", re.ASCII),
    "archive/data/constants/model_constants_config.json": re.compile(r"tensor_\d+", re.ASCII),
}
_FIXED = {"archive/archive_format", "archive/archive_version", "archive/.data/version", "archive/byteorder"}
_RAW = re.compile(r"archive/data/(weights/weight|constants/tensor)_\d+", re.ASCII)


def save_pickle_free(program: ExportedProgram) -> bytes:
    """The program as a .pt2 archive whose every payload is raw bytes or JSON; the same program gives the same bytes.

    Raises ArtifactError if the program holds something that torch can only pickle (a sparse tensor, a script object)
    or an operator that torch_graph.py does not list.
    """
    whole = io.BytesIO()
    try:
        torch.export.save(program, whole)
    except Exception as error:
        raise ArtifactError(f"torch cannot save this program ({error!r}); make it of dense tensors alone") from error
    with zipfile.ZipFile(whole) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    # A hash of the archive that torch wrote, which this one no longer is.
    entries.pop("archive/.data/serialization_id", None)
    # torch's reader wants the example inputs' entry to exist and takes an empty one for "none".
    entries[_SAMPLES] = b""
    entries[_GRAPH] = json.dumps(without_notes(json.loads(entries[_GRAPH]))).encode()
    _check(entries)
    return _pack(entries)


def load_pickle_free(data: bytes) -> ExportedProgram:
    """The program in `data`. Raises ArtifactError for anything that could unpickle or run, or is no archive."""
    try:
        entries = _unpack(data)
        _check(entries)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"this is no torch.export archive ({error!r}); export the variant anew") from error
    try:
        return torch.export.load(io.BytesIO(_pack(entries)))
    except Exception as error:
        raise ArtifactError(f"torch cannot load this archive ({error}); export the variant anew") from error


def _unpack(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        if len({info.filename for info in infos}) != len(infos):
            raise ArtifactError("the torch archive has two entries of one name; it is not one that Sluice wrote")
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ArtifactError("the torch archive is compressed; it is not one that Sluice wrote")
        return {info.filename: archive.read(info) for info in infos}


def _pack(entries: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def _check(entries: dict[str, bytes]) -> None:
    """Raise ArtifactError unless every entry is one that torch reads as raw bytes or harmless JSON."""
    for name, content in entries.items():
        if name in _TABLES:
            _check_table(name, json.loads(content.decode()))
        elif name == _GRAPH:
            refuse_code(content.decode())
        elif name == _SAMPLES:
            if content:
                raise ArtifactError("the torch archive holds example inputs, which would be unpickled; export it anew")
        elif name not in _FIXED and not _RAW.fullmatch(name):
            raise ArtifactError(f"the torch archive holds {name[:120]!r}, which could be unpickled or run; export anew")
    if missing := {_GRAPH, _SAMPLES, *_TABLES} - entries.keys():
        raise ArtifactError(f"the torch archive lacks {sorted(missing)}; export the variant anew")


def _check_table(name: str, table: dict[str, Any]) -> None:
    for payload, meta in table["config"].items():
        raw = meta.get("use_pickle") is False and meta.get("tensor_meta")
        if not raw or not _TABLES[name].fullmatch(meta.get("path_name", "")):
            raise ArtifactError(
                f"the torch archive wants {payload[:120]!r} unpickled ({name}); export the variant without it"
            )
