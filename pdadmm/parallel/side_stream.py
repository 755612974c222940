"""Copies of messages between main memory and a device, beside the device's work and without waiting on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["REACHED", "AtOnce", "Event", "SideStream", "side_stream"]


class Event(Protocol):
    """A point in the work of a device."""

    def query(self) -> bool:
        """Whether the work before it is done."""

    def synchronize(self) -> None:
        """Return once it is done."""


class _Reached:
    """The event behind work that has been waited for, or that no device does."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None


REACHED = _Reached()


class SideStream:
    """A stream of a GPU for copies alone: they run beside the work, which is what the current stream is given.

    Neither stream waits for the other but by events. An array that is copied must be kept until the copy is waited
    for, by the host or by the work (``hold``): torch gives freed memory to work that is asked for later, and knows
    nothing of this stream (``record_stream`` would tell it, and delay the reuse).
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def mark(self) -> Event:
        """Return the event behind the work asked for so far."""
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Event:
        """Copy once the event ``after`` is reached, one of both in pinned memory; return the event behind the copy."""
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            self._copy(target, source)
        return self.stream.record_event()

    def hold(self, event: Any) -> None:
        """Let the work asked for from now on wait for ``event``; the caller does not."""
        torch.cuda.current_stream(self.device).wait_event(event)

    @staticmethod
    def _copy(target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)


class AtOnce:
    """The same where there are no streams: every copy is done as it is asked for."""

    def mark(self) -> Event:
        return REACHED

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Event:
        target.copy_(source)
        return REACHED

    def hold(self, event: Any) -> None:
        return None


@cache
def side_stream(device: torch.device) -> SideStream | AtOnce:
    """Return the one that all messages of this rank share, made when the first of them is prepared."""
    return SideStream(device) if device.type == "cuda" else AtOnce()
