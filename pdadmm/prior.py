"""Class priors: logits moved from the class shares of the training nodes to those of the nodes to classify."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdadmm.errors import InputError
from pdadmm.parameters import Check, positive

__all__ = ["class_shares", "logit_shift"]


def _accept(value: Any) -> str | tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if list(parts) == ["val"]:
        return "val"
    numbers = tuple(positive.accept(part) for part in parts)
    if len(numbers) < 2:
        raise ValueError
    return numbers


class_shares = Check(_accept, "val, or a positive number for each class such as 0.2,0.5,0.3", "X,X,..")


def logit_shift(
    prior: str | tuple[float, ...], weight: float, labels: np.ndarray, parts: dict[str, slice], classes: int
) -> Tensor | None:
    """Return what is added to the logits, tau log(pi_c / pi_train_c), (C,) in float64; None for tau = ``weight`` = 0.

    pi is ``prior``, scaled to sum to 1, or for "val" (n_c + 1) / (n + C) with the n_c of the n validation nodes that
    are of class c; pi_train has the same form. With tau = 1 and calibrated probabilities this is Bayes' rule for
    classes whose shares changed and whose features did not (Saerens, Latinne and Decaestecker 2002; Menon et al. 2021).
    ``labels`` (N,) are those of training, validation and test nodes, at the rows that ``parts`` says.
    Raises InputError for a prior that does not fit the classes, or "val" without validation nodes.

    >>> labels = np.array([0, 1, 0, 0, 0, 1])
    >>> logit_shift("val", 0.5, labels, {"train": slice(0, 2), "val": slice(2, 6)}, 2).exp().square()
    tensor([1.3333, 0.6667], dtype=torch.float64)
    """
    if not weight:
        if prior != "val":
            raise InputError("prior", prior, "val where prior_weight is 0", "set prior_weight above 0 to use it")
        return None
    if prior == "val":
        if parts["val"].stop == parts["val"].start:
            raise InputError("prior", prior, "a share for each class without validation nodes")
        shares = _shares(labels[parts["val"]], classes)
    elif isinstance(prior, str) or len(prior) != classes:
        raise InputError("prior", prior, f"{classes} numbers, one for each class")
    else:
        shares = np.array(prior, dtype=np.float64) / sum(prior)
    return torch.from_numpy(weight * np.log(shares / _shares(labels[parts["train"]], classes)))


def _shares(labels: np.ndarray, classes: int) -> np.ndarray:
    counts = np.bincount(labels, minlength=classes) + 1.0
    return counts / counts.sum()
