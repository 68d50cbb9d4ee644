"""requirements-<peer>.txt -> a virtual environment of its own, made by pip; made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from cluster.errors import ConfigError

HERE = Path(__file__).parent
_PREPARE = {"nncf": "from nncf.torch.extensions import force_build_cpu_extensions as build; build()"}
"""What a tool compiles when it is first used, and keeps: no part of the time that it is given."""
_READY = ".sluice-ready"


def requirements(peer: str) -> list[str]:
    """Its pinned packages."""
    lines = (HERE / f"requirements-{peer}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def variables(venvs: Path, peer: str) -> dict[str, str]:
    """Of every process in that environment: one thread, its own programs first, what it compiles kept beside it."""
    folder = (venvs / peer).resolve()
    return {
        **os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}", "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(folder / "torch_extensions"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "OLIVE_DISABLE_TELEMETRY": "1", "NNCF_EXTENSION_LOAD_TIMEOUT": "0", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": "",
    }  # fmt: skip


def python(venvs: Path, peer: str) -> Path:
    return (venvs / peer / "bin" / "python").absolute()


def make(venvs: Path, peer: str, *, reuse_torch: bool = False) -> dict[str, str]:
    """The environment, unless it is there; the versions of what was asked for. `reuse_torch` lets it see the packages
    of this environment, torch among them: gigabytes less, and no longer the peer alone.

    Raises ConfigError with pip's last words.
    """
    wanted = "\n".join(requirements(peer))
    ready = venvs / peer / _READY
    if not ready.exists() or ready.read_text() != wanted:
        _run([sys.executable, "-m", "venv", str(venvs / peer)], dict(os.environ))
        if reuse_torch:
            packages = sysconfig.get_path("purelib", vars={"base": str(venvs / peer), "platbase": str(venvs / peer)})
            (Path(packages) / "reused.pth").write_text(sysconfig.get_path("purelib") + "\n")
        environment = variables(venvs, peer)
        install = ["-m", "pip", "install", "-r", str(HERE / f"requirements-{peer}.txt")]
        _run([str(python(venvs, peer)), *install], environment)
        if peer in _PREPARE:
            _run([str(python(venvs, peer)), "-c", _PREPARE[peer]], environment)
        ready.write_text(wanted)
    names = [line.partition("==")[0] for line in requirements(peer)]
    tell = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    told: dict[str, str] = json.loads(_run([str(python(venvs, peer)), "-c", tell], variables(venvs, peer)))
    return told


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise ConfigError(" ".join(errors[-1].split())[:300])
    return done.stdout
