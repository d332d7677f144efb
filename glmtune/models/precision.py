"""Which precision `model.dtype=auto` is. No torch here: `glmtune estimate` asks, too."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

from glmtune.config import Dtype

# What systems call the units that multiply matrices of bfloat16: of Intel and of Arm.
UNITS = {"amx_bf16", "bf16"}
# Those of vectors, which an AMD core has for twice the products of fp32, and trains with at 1.5 times the speed; an
# Intel core has for as many, and trains with at 0.67 of the speed (SmolLM2-135M, docs/log.md).
VECTOR_UNITS = "avx512_bf16"
FAST_VECTORS = "AuthenticAMD"
# With these, torch multiplies vectors of 16 bits; without, it does so by loops (`upcasting`).
VECTORS = {"bfloat16": UNITS | {VECTOR_UNITS}, "float16": {"amx_fp16", "avx512_fp16", "asimdhp"}}


def has_bf16_units() -> bool:
    """Return whether this processor multiplies matrices of bfloat16 faster than those of fp32, as its system tells."""
    known = flags()
    return bool(UNITS & known) or {VECTOR_UNITS, FAST_VECTORS} <= known


@cache  # every layer asks
def has_units(name: Literal["bfloat16", "float16"]) -> bool:
    """Return whether this processor multiplies matrices or vectors of a precision, as its system tells."""
    return bool(VECTORS[name] & flags())


@cache
def flags() -> set[str]:
    """Return what this processor can do and, on Linux, who made it, in the words of its system."""
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        try:
            said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            return set()
        half = {"asimdhp"} if platform.machine() == "arm64" else set()  # as Linux calls it
        return half | {"bf16"} if said == "1" else half
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    told = [next((line for line in lines if line.startswith(name)), "") for name in ("flags", "Features", "vendor_id")]
    return set(" ".join(told).split())


def on_cpu(name: Dtype, wide: bool, packed: bool = False) -> Dtype:
    """Return the precision of a `model.dtype` setting on a CPU.

    Args:
        name: the setting.
        wide: the files hold numbers of 32 bits (`Architecture.wide`); auto does not round them.
        packed: linear layers are of 8 or 4 bits, which torch's kernels multiply in bfloat16 on any processor.
    """
    if name != "auto":
        return name
    return "bfloat16" if (packed or has_bf16_units()) and not wide else "float32"
