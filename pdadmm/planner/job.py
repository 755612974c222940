"""What is to be trained and how it is spread: the shapes that every prediction starts from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from pdadmm.admm.first_layer import choose_first_layer
from pdadmm.admm.quantizer import Quantizer
from pdadmm.parallel.placement import layer_costs, place_layers
from pdadmm.parallel.rank_grid import RankGrid

__all__ = ["Job", "largest", "placement"]


@dataclass(frozen=True)
class Job:
    """A GA-MLP with ``widths`` [n_0, n_1, .., n_L] on V training ``nodes`` out of N labelled ``rows``.

    ``itemsize``: bytes of a number; ``quantizer``: how messages are coded, None for as they are; ``first_layer``,
    ``form``: as the solver's settings; ``accelerated``: whether the last stage is.

    >>> Job(1000, 3000, (64, 32, 32, 7)).layers
    3
    """

    nodes: int
    rows: int
    widths: tuple[int, ...]
    itemsize: int = 4
    quantizer: Quantizer | None = None
    first_layer: str = "auto"
    form: str = "auto"
    accelerated: bool = False

    @property
    def layers(self) -> int:
        """L."""
        return len(self.widths) - 1

    @property
    def first(self) -> Any:
        """The row of FIRST_LAYERS that layer 1 takes."""
        return choose_first_layer(self.first_layer, self.nodes, self.widths[0])

    def exact(self, layer: int) -> bool:
        """Whether ``layer`` (from 0, above the first) takes the exact form, as ADMMSolver decides."""
        wide = max(self.widths[layer], self.widths[layer + 1])
        return self.form == "exact" or (self.form == "auto" and wide <= 8 * self.nodes)

    def weights(self) -> int:
        """Return the numbers of all W and b."""
        return sum(n * (m + 1) for m, n in itertools.pairwise(self.widths))

    def message_bytes(self, boundary: int, kind: str, nodes: int) -> int:
        """Return the bytes of one message of p or q over a boundary (from 0) for so many nodes, header included."""
        from pdadmm.admm.channel import HEADER_BYTES

        return HEADER_BYTES + self.coded_bytes(self.widths[boundary + 1], kind, nodes)

    def coded_bytes(self, width: int, kind: str, nodes: int) -> int:
        """Return the bytes of a message's body: numbers, or codes with their scales."""
        import torch

        coder = None if self.quantizer is None else self.quantizer.coder(kind)
        if coder is None:
            return nodes * width * self.itemsize
        dtype = torch.float64 if self.itemsize == 8 else torch.float32
        return 0 if coder.codec is None else coder.codec.nbytes((nodes, width), dtype)


def placement(job: Job, grid: RankGrid) -> list[range]:
    """Return the layers of each group at full depth, as the solver places them."""
    cost = job.first.cost(job.nodes, job.widths[0], job.widths[1]) / grid.shards
    return place_layers(layer_costs(largest(job.nodes, grid), job.widths, cost), grid.groups)


def largest(count: int, grid: RankGrid) -> int:
    """Return the rows of the largest shard out of ``count``."""
    return -(-count // grid.shards)
