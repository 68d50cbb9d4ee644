"""torch.export program <-> bytes, without a pickle on either side.

torch's own archive keeps weights raw and the graph as JSON, but adds the example inputs as a pickle, and its reader
unpickles whatever payload the archive's own tables tell it to. So the writer leaves the example inputs out, and the
reader refuses any archive that could make torch unpickle before torch sees it.
"""

from __future__ import annotations

import io
import json
import zipfile

import torch
from torch.export import ExportedProgram

from cluster.errors import ArtifactError

_SAMPLES = "/data/sample_inputs/"
_TABLES = ("_weights_config.json", "_constants_config.json")


def save_pickle_free(program: ExportedProgram) -> bytes:
    """The program as a .pt2 archive whose every payload is raw bytes or JSON.

    Raises ArtifactError if the program holds something that torch can only pickle (a sparse tensor, a script object).
    """
    whole = io.BytesIO()
    torch.export.save(program, whole)
    kept = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            # torch's reader wants the example inputs' entry to exist and takes an empty one for "none".
            content = b"" if _SAMPLES in entry.filename else source.read(entry)
            target.writestr(zipfile.ZipInfo(entry.filename), content)
    data = kept.getvalue()
    refuse_pickles(data)
    return data


def refuse_pickles(data: bytes) -> None:
    """Raise ArtifactError unless no payload of the archive can reach an unpickler."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise ArtifactError("the torch archive has two entries of one name; it is not one that Sluice wrote")
            for name in names:
                is_sample = _SAMPLES in name or name.endswith((".pt", ".pkl"))
                is_object = "/data/constants/" in name and not (
                    name.endswith("_config.json") or name.rsplit("/", 1)[-1].startswith("tensor_")
                )
                if (is_sample and archive.getinfo(name).file_size) or is_object:
                    raise ArtifactError(f"the torch archive holds {name!r}, which would be unpickled; export it anew")
                if name.endswith(_TABLES):
                    _refuse_table(name, archive.read(name))
    except (zipfile.BadZipFile, json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"this is no torch.export archive ({error}); export the variant anew") from error


def _refuse_table(name: str, table: bytes) -> None:
    for payload, meta in json.loads(table)["config"].items():
        if meta.get("use_pickle") is not False or not meta.get("tensor_meta"):
            raise ArtifactError(f"{name} wants {payload!r} unpickled; export the variant anew without it")


def load_pickle_free(data: bytes) -> ExportedProgram:
    """The program in `data`. Raises ArtifactError for anything that would be unpickled or is no archive."""
    refuse_pickles(data)
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:
        raise ArtifactError(f"torch cannot load this archive ({error}); export the variant anew") from error
