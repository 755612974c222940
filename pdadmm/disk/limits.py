"""What memory a process holds, and a limit on what it may take from here on."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["Limit", "peak_rss_bytes", "rss_bytes"]


def peak_rss_bytes() -> int:
    """Return the largest resident set this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int:
    """Return the resident set of this process in bytes; its peak where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_rss_bytes()


class Limit:
    """A limit of ``limit`` bytes on the resident set beyond what the process holds as this is made."""

    def __init__(self, limit: int) -> None:
        self.limit, self.start, self._peak = limit, rss_bytes(), peak_rss_bytes()

    def most(self) -> int:
        """Return the most that was taken since: exact where the peak is newer than this limit, a lower bound else."""
        peak = peak_rss_bytes()
        return max(rss_bytes(), peak if peak > self._peak else 0) - self.start
