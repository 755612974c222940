"""What a streamed training asks of the place where X and its state lie: a disk, or main memory beside a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from pdadmm.disk.blocks import Traffic

__all__ = ["NodeStorage"]


class NodeStorage(Protocol):
    """X and the state of all nodes, which come to ``device`` a block of at most ``block`` nodes at a time.

    ``kind`` names its record in a checkpoint, ``waiting`` in a timeline the time between two blocks. ``traffic`` counts
    the bytes that come and go, ``moved`` has those of each iteration of the stage. Blocks that are yielded lie in
    memory that is used again.
    """

    kind: ClassVar[str]
    waiting: ClassVar[str]
    nodes: int  # V; the labelled nodes are more
    inputs: int
    block: int
    dtype: torch.dtype
    device: torch.device
    traffic: Traffic
    moved: list[int]

    @property
    def has_state(self) -> bool:
        """Whether the stage has a state to go on from; none before its first iteration."""

    def X(self, stop: int) -> Iterator[tuple[range, Tensor]]:
        """Yield the numbers of a block's nodes and their rows of X, up to node ``stop``."""

    def here(self, rows: Tensor) -> Tensor:
        """Return a block's rows of another array of main memory, such as y, where blocks are computed on."""

    def begin(self, stage: int, columns: dict[str, int]) -> None:
        """Begin a stage, or begin it again: there is no state yet."""

    def sweep(self, write: bool) -> Iterator[tuple[range, Tensor, dict[str, Tensor]]]:
        """Yield the training nodes of every block, their rows of X and their state, or memory to be filled with it.

        With ``write`` the state is kept as it is when the next block is asked for.
        """

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint needs to find the state again, beside what is ``kept`` in it."""

    def kept(self, layer: int) -> dict[str, Tensor]:
        """Return the arrays of the state, by their names in ``columns``, that a layer's checkpoint has to hold."""

    def not_saved(self) -> None:
        """Raise InputError where training cannot go on without the checkpoint that could not be written."""

    def go_on(
        self, stage: int, columns: dict[str, int], record: dict[str, Any], kept: list[dict[str, Any]]
    ) -> None:
        """Go on with the stage of a checkpoint; what was ``kept`` is taken out of the layers' states."""

    def summary(self) -> dict[str, int | None]:
        """Return the sizes and the traffic."""

    def remove(self) -> None:
        """Give back what nobody needs once the training has ended."""
