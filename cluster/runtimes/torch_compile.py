"""Graph module of an exported program -> the same arithmetic as machine code of Inductor's, for every batch size.

All compiling is done here, at load. TorchDynamo compiles a graph for the sizes that it sees, with guards: a batch of
one for itself, a free batch for "2 or more", and where an operator has a threshold of its own ("16 or more", as
convolution on the CPU) only for one side of it. So a batch of each of several sizes is run, and afterwards compiled
code is only used and never made: a batch that no guard lets in is computed by the module as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._inductor import config as inductor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from cluster.errors import RuntimeUnavailable
from cluster.runtimes.user_cache import user_cache
from cluster.variants import TensorSpec

_BATCH_SIZES = (1, 64, 32, 16, 8, 4, 2)
"""Large before small: by the size seen at compiling Inductor judges which loops are worth several threads."""
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_PLACES = re.compile(r"index|embedding|gather|scatter|take|put|bucketize|searchsorted|grid")
"""In the names of operators that read or write at places which a tensor holds."""

Batch = Callable[[int], list[torch.Tensor]]
"""Batch size -> inputs as the module takes them."""
Module = Callable[..., Any]


def compiled(module: fx.GraphModule, inputs: Sequence[TensorSpec], batch: Batch, threads: int) -> Module:
    """`module`, compiled for `threads` threads.

    Must be called with that count of torch's threads set. Raises RuntimeUnavailable if it does not compile here.
    """
    _refuse_without_compiler()
    if os.environ.get(_CACHE) in (None, "", default_cache_dir()):  # which torch itself sets where nobody has
        os.environ[_CACHE] = str(user_cache("inductor"))
    # Above one torch would start worker processes that stay, and compile on cores that serve requests meanwhile.
    inductor.compile_threads = 1
    # A place out of range is an exception, which ends the whole process if it is thrown on a thread of OpenMP's.
    options: dict[str, Any] = {"cpp.threads": 1 if _reads_places(module) else threads}
    compiling = torch.compile(module, fullgraph=True, options=options)
    try:
        with torch.inference_mode():
            for size in _BATCH_SIZES:
                compiling(*_freed(batch(size), inputs))
    except Exception as error:
        raise RuntimeUnavailable(
            f"torch cannot compile this graph here ({_reason(error)}); set compile=false to run it as it is"
        ) from error
    only_run: Module = torch._dynamo.run(module)
    return only_run


def _refuse_without_compiler() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeUnavailable(
            f"compile=true needs a C++ compiler, and {inductor.cpp.cxx[-1]!r} does not run; install one "
            "(apt-get install g++), name another in the environment's CXX, or set compile=false"
        ) from error


def _reads_places(module: fx.GraphModule) -> bool:
    return any(
        _PLACES.search(str(node.target))
        for each in module.modules() if isinstance(each, fx.GraphModule)
        for node in each.graph.nodes if node.op == "call_function"
    )  # fmt: skip


def _freed(tensors: list[torch.Tensor], inputs: Sequence[TensorSpec]) -> list[torch.Tensor]:
    """Marked as free where they are, unless 1 long: Inductor compiles that for itself, whatever is marked."""
    for tensor, spec in zip(tensors, inputs, strict=True):
        for axis, length in enumerate(spec.shape):
            if length < 0 and tensor.shape[axis] > 1:
                torch._dynamo.mark_dynamic(tensor, axis)
    return tensors


def _reason(error: Exception) -> str:
    """The compiler's own lines where there are some: torch wraps them in pages."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if "error:" in line] or text.split()
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
