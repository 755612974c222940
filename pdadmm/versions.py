"""Which program a result came from: versions of what computed it, and the processor."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from pdadmm import __version__

__all__ = ["versions"]

PACKAGES = ("numpy", "scipy", "torch")


def versions() -> dict[str, str]:
    """Return versions by name, and the processor, without importing anything.

    >>> list(versions())
    ['pdadmm', 'python', 'numpy', 'scipy', 'torch', 'processor']
    """
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"pdadmm": __version__, "python": platform.python_version(), **packages, "processor": _processor()}


def _processor() -> str:
    """Return the processor's name: times of two of them do not belong into one table."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
