"""What a solver trains on: augmented features and labels of the labelled nodes, training nodes first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Problem", "scores", "tally"]


@dataclass
class Problem:
    """X (N, n_0) on rank 0 and None on the others; y (N,) everywhere; rows are train, then val, then test.

    X may lie on disk, for a storage to take. ``parts`` maps "train", "val", "test" to their rows; a part may be empty
    but for "train". ``logit_shift`` (C,) is added to the logits wherever they are judged, and to b_L of the trained
    network.
    """

    X: Any  # a Tensor, or rows on disk
    y: Tensor
    inputs: int
    classes: int
    parts: dict[str, slice]
    logit_shift: Tensor | None = None

    def on(self, device: torch.device, streamed: bool = False) -> Problem:
        """Return this problem with its arrays on ``device``; X then leaves this one, if it is not there already.

        y of a ``streamed`` training stays where it is: its blocks go to the device as those of X do, which a storage
        has.
        """
        if device.type == "cpu":
            return self
        X, shift = (None if x is None else x.to(device) for x in (self.X, self.logit_shift))
        y = self.y if streamed else self.y.to(device)
        self.X = None
        return Problem(X, y, self.inputs, self.classes, self.parts, shift)

    @property
    def nodes(self) -> int:
        """V, the number of training nodes."""
        return self.parts["train"].stop


def tally(
    logits: Tensor, y: Tensor, members: Mapping[str, Tensor | slice], logit_shift: Tensor | None = None
) -> dict[str, float]:
    """Return the hits among the ``members`` (rows, or masks over them) of each part, the sum of validation losses,
    and how many rows are not finite. ``logit_shift`` is a Problem's.
    """
    if logit_shift is not None:
        logits = logits + logit_shift.to(logits.dtype)
    hits = logits.argmax(1) == y
    found: dict[str, float] = {"bad": int((~torch.isfinite(logits)).any(1).sum())}
    for part, own in members.items():
        found[part] = int(hits[own].sum())
        if part == "val":
            loss = torch.nn.functional.cross_entropy(logits[own].double(), y[own], reduction="sum")
            found["val_loss"] = float(loss)
    return found


def scores(tallies: list[dict[str, float]], counts: Mapping[str, int]) -> dict[str, float]:
    """Return accuracies and mean validation loss from all ranks' tallies and the number of nodes in each part."""
    result = {}
    for part, count in counts.items():
        if count:
            result[f"{part}_accuracy"] = sum(tally[part] for tally in tallies) / count
    if counts["val"]:
        result["val_loss"] = math.fsum(tally["val_loss"] for tally in tallies) / counts["val"]
    return result
