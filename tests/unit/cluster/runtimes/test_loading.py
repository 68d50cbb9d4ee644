"""A runtime is imported when a variant is loaded with it, and its absence is said with the way out."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_no_runtime() -> None:
    runtimes = "{'torch', 'onnxruntime', 'openvino'}"
    assert python(f"import sys, cluster.runtimes; print({runtimes} & set(sys.modules))") == "set()"


@pytest.mark.parametrize(
    ("runtime", "format_"), [("torch", "torch_export"), ("onnxruntime", "onnx"), ("openvino", "onnx")]
)
def test_a_runtime_that_is_not_installed_says_what_to_install(runtime: str, format_: str) -> None:
    said = python(
        "import sys\n"
        f"sys.modules[{runtime!r}] = None\n"  # what makes Python say ImportError
        "from cluster.errors import RuntimeUnavailable\n"
        "from cluster.runtimes import RuntimeConfig, load_runtime\n"
        "from cluster.variants import Variant\n"
        f"variant = Variant(name='v', family='f', format={format_!r}, inputs=(), outputs=())\n"
        "try:\n"
        f"    load_runtime(None, variant, RuntimeConfig(name={runtime!r}))\n"
        "except RuntimeUnavailable as error:\n"
        "    print(error)\n"
    )
    assert f"pip install {runtime}" in said
