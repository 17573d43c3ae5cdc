"""What numbers were measured on: processor and versions. Without PyTorch."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("carnet", "torch", "torchvision", "lightning-fabric", "numpy", "pillow", "timm")


def versions(*others: str) -> dict[str, str]:
    """Versions of what the numbers depend on.

    Args:
        others: packages to name as well.
    """
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in (*_PACKAGES, *others):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


_INSTRUCTION_SETS = {
    "AMX": {"amx_tile", "amx_bf16"},
    "AVX512 with bf16": {"avx512f", "avx512_bf16"},
    "AVX512": {"avx512f"},
    "AVX2": {"avx2"},
    "SVE with bf16": {"sve", "bf16"},
    "NEON": {"asimd"},
}
"""Name -> the flags of /proc/cpuinfo that it needs; the newest first."""


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The newest instructions for vectors that the processor has, such as AVX2, as far as the system tells.

    Args:
        cpuinfo: where Linux lists them; tests have their own.
    """
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                there = set(flags.split())
                return next((name for name, needed in _INSTRUCTION_SETS.items() if needed <= there), "scalar")
    return platform.machine()


def processor_name() -> str:
    """The processor's model, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            # A Raspberry Pi has no model name, and tells which board it is instead.
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
