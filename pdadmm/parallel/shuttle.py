"""Blocks of rows on their way from main memory to a device and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pdadmm.disk.blocks import Traffic

__all__ = ["Shuttle"]


class Shuttle:
    """Two rooms on ``device`` for blocks of at most ``block`` rows: one is worked on, one is emptied and filled.

    On a GPU the copies are a stream's of their own, beside the work on the other block: it fills a room once the work
    there is done and its rows are back, and the work on a block waits for its own rows alone. ``traffic`` counts bytes
    to the device as read, bytes back as written.
    """

    def __init__(self, device: torch.device, block: int, traffic: Traffic) -> None:
        self.device, self.block, self.traffic = device, block, traffic
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.rooms: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    def passing(
        self, arrays: Mapping[str, Tensor], stop: int, fetched: Sequence[str], returned: Sequence[str]
    ) -> Iterator[tuple[range, dict[str, Tensor]]]:
        """Yield the numbers of every block's rows, up to row ``stop``, and room for those of all arrays on the device.

        The room has the rows of the arrays ``fetched``. What the caller then did to the arrays ``returned`` is in main
        memory once the pass has ended.
        """
        spans = [range(start, min(start + self.block, stop)) for start in range(0, stop, self.block)]
        try:
            coming = self._fetch(0, spans[0], arrays, fetched)
            for number, span in enumerate(spans):
                arrived = coming
                if number + 1 < len(spans):
                    coming = self._fetch(number + 1, spans[number + 1], arrays, fetched)
                if self.stream is not None:
                    torch.cuda.current_stream(self.device).wait_event(arrived)
                room = self.rooms[number % 2]
                yield span, {name: self._rows(room, name, arrays[name], span) for name in arrays}
                self._return(room, span, arrays, returned)
        finally:
            if self.stream is not None:
                self.stream.synchronize()

    def clear(self, names: Sequence[str]) -> None:
        """Give back the rooms of these arrays."""
        for room in self.rooms:
            for name in names:
                room.pop(name, None)

    def _rows(self, room: dict[str, Tensor], name: str, array: Tensor, span: range) -> Tensor:
        if name not in room:
            rows = min(self.block, len(array))
            room[name] = torch.empty(rows, array.shape[1], dtype=array.dtype, device=self.device)
        return room[name][: len(span)]

    @staticmethod
    def _copy(target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def _beside(self) -> AbstractContextManager[Any]:
        """Let copies start where the work so far ends, beside the work that follows."""
        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self.stream)

    def _fetch(self, number: int, span: range, arrays: Mapping[str, Tensor], names: Sequence[str]) -> Any:
        """Bring the rows of a block to its room; return the event that they are there, where there is a stream."""
        targets = {name: self._rows(self.rooms[number % 2], name, arrays[name], span) for name in names}
        with self._beside():
            for name, target in targets.items():
                self._copy(target, arrays[name][span.start : span.stop])
                self.traffic.add(read=target.numel() * target.element_size())
        return None if self.stream is None else self.stream.record_event()

    def _return(self, room: dict[str, Tensor], span: range, arrays: Mapping[str, Tensor], names: Sequence[str]) -> None:
        with self._beside():
            for name in names:
                source = room[name][: len(span)]
                self._copy(arrays[name][span.start : span.stop], source)
                self.traffic.add(written=source.numel() * source.element_size())
