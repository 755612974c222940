"""A limit on what memory a process may take from here on."""

from __future__ import annotations

from pdadmm.files import peak_rss_bytes, resident_bytes

__all__ = ["Limit"]


class Limit:
    """A limit of ``limit`` bytes on the resident set beyond what the process holds as this is made."""

    def __init__(self, limit: int) -> None:
        self.limit, self.start, self._peak = limit, resident_bytes(), peak_rss_bytes()

    def most(self) -> int:
        """Return the most that was taken since: exact where the peak is newer than this limit, a lower bound else."""
        peak = peak_rss_bytes()
        return max(resident_bytes(), peak if peak > self._peak else 0) - self.start
