"""Cpu -> which (runtime, precision) pairs it computes natively, and which cannot be faster than fp32 at all.

What is fastest is measured, never read off a name or a flag: on one CPU without VNNI int8 was from 3.5 times as fast as
fp32 (ONNX Runtime, wide matrices, one sample) to less than half as fast (OpenVINO, the same matrices). So `pays` leaves
out only what computes fp32's very own arithmetic; where in doubt it answers True, and the profiler finds out. What is
left out may still be smaller on disk.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cluster.hardware import Cpu, read_cpu
from cluster.machine import INSTRUCTION_SETS, Machine, family
from cluster.runtimes.base import RuntimeName
from cluster.variants import Precision

How = Literal["native", "emulated", "unknown", "not executable"]
_VECTORS = ("avx512f", "avx2")
_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
_BF16 = ("amx_bf16", "avx512_bf16")
_UNTOLD = "the kernel does not name this CPU's instruction sets"


@dataclass(frozen=True)
class Native:
    """How one runtime computes one precision on one CPU."""

    runtime: RuntimeName
    precision: Precision
    how: How
    why: str
    may_gain: bool
    """False only where it is certain to be no faster than fp32, which itself always counts."""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def native(machine: Machine) -> tuple[Native, ...]:
    """Every runtime with every precision; one that is not installed there executes nothing."""
    made = []
    for runtime in get_args(RuntimeName):
        for precision in get_args(Precision):
            pair = on_cpu(machine.cpu, runtime, precision)
            if machine.libraries.get(runtime) == "not installed":
                why = f"{runtime} is not installed; pip install {runtime}"
                pair = dataclasses.replace(pair, how="not executable", why=why, may_gain=False)
            made.append(pair)
    return tuple(made)


def pays(runtime: RuntimeName, precision: Precision) -> bool:
    """Whether `precision` can be faster than fp32 in `runtime` on this machine's CPU; True if in doubt.

    Whether the runtime is installed is not asked: that it is missing is for its loader to say.
    """
    return on_cpu(read_cpu(), runtime, precision).may_gain


def on_cpu(cpu: Cpu, runtime: RuntimeName, precision: Precision) -> Native:
    """One pair, by what the kernel tells of the CPU."""
    if runtime == "torch" and precision != "fp32":
        why = "reduced precisions are made as ONNX graphs; torch executes exported torch programs"
        return Native(runtime, precision, "not executable", why, may_gain=False)
    if precision == "fp32":
        return Native(runtime, precision, *_fp32(cpu), may_gain=True)
    if precision == "int8":
        return Native(runtime, precision, *_int8(cpu), may_gain=True)
    if runtime == "onnxruntime":
        why = "its CPU kernels know no bf16: it folds the casts away when it loads, and computes in fp32"
        return Native(runtime, precision, "emulated", why, may_gain=False)
    return _openvino_bf16(cpu)


def _fp32(cpu: Cpu) -> tuple[How, str]:
    if family(cpu) == "arm":
        return "native", "NEON"
    return "native", _first(cpu, _VECTORS) or ("the CPU's baseline" if cpu.model else _UNTOLD)


def _int8(cpu: Cpu) -> tuple[How, str]:
    if best := _first(cpu, _INT8):
        return "native", best
    if family(cpu) == "unknown":
        return "unknown", _UNTOLD
    missing = "the dot product" if family(cpu) == "arm" else "VNNI"
    return "emulated", f"no {missing}: several instructions for each group of products; faster than fp32 or slower"


def _openvino_bf16(cpu: Cpu) -> Native:
    """The plugin computes in bf16 on AVX-512 of any kind and on AVX2 with conversions to bf16 (src/plugins/intel_cpu/
    src/utils/precision_support.cpp), in fp32 on everything else that it runs on; whatever the kernel leaves open here
    is left to measurement."""
    if best := _first(cpu, _BF16):
        return _bf16("native", best)
    if "avx512f" in cpu.flags:
        return _bf16("emulated", "AVX-512 without BF16: it converts back and forth, mostly slower than fp32")
    if "avx_vnni" in cpu.flags:
        # avx_ne_convert came with later CPUs of this kind, and Linux hides it from /proc/cpuinfo.
        return _bf16("unknown", "the kernel does not say whether this CPU converts to bf16")
    if "bf16" in cpu.flags:
        return _bf16("unknown", "the CPU has BF16; whether OpenVINO's kernels for ARM take it is not known")
    if family(cpu) == "unknown":
        return _bf16("unknown", _UNTOLD)
    return _bf16("emulated", "no BF16 instructions: it computes in fp32", may_gain=False)


def _bf16(how: How, why: str, *, may_gain: bool = True) -> Native:
    return Native("openvino", "bf16", how, why, may_gain)


def _first(cpu: Cpu, flags: tuple[str, ...]) -> str:
    return next((INSTRUCTION_SETS[flag][1] for flag in flags if flag in cpu.flags), "")
