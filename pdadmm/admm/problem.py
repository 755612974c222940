"""What a solver trains on: augmented features and labels of the labelled nodes, training nodes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pdadmm.disk.rows import Centred

__all__ = ["Problem"]


@dataclass
class Problem:
    """X (N, n_0) on rank 0 and None on the others; y (N,) everywhere; rows are train, then val, then test.

    X may lie on disk, for a storage to take. ``parts`` maps "train", "val", "test" to their rows; a part may be empty
    but for "train".
    """

    X: Tensor | Centred | None
    y: Tensor
    inputs: int
    classes: int
    parts: dict[str, slice]

    @property
    def nodes(self) -> int:
        """V, the number of training nodes."""
        return self.parts["train"].stop

    def scores(self, logits: Tensor) -> dict[str, float]:
        """Return accuracy of every non-empty part, and the mean cross-entropy of the validation part."""
        result = {}
        for name, rows in self.parts.items():
            if rows.stop > rows.start:
                hits = logits[rows].argmax(1) == self.y[rows]
                result[f"{name}_accuracy"] = float(hits.double().mean())
        val = self.parts["val"]
        if val.stop > val.start:
            result["val_loss"] = float(
                torch.nn.functional.cross_entropy(logits[val].double(), self.y[val], reduction="mean")
            )
        return result
