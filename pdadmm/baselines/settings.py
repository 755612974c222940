"""The hyper-parameters of training by backpropagation and their checked form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.losses import LOSSES
from pdadmm.baselines.initial import INITIAL
from pdadmm.parallel.device import device_param
from pdadmm.parameters import (
    below_one,
    check_stages,
    non_negative,
    one_of,
    optional,
    param,
    positive,
    stage_list,
    validate,
    whole,
)

__all__ = ["BackpropSettings", "learning_rate"]


def learning_rate(default: float):
    """Declare the learning rate of one optimiser."""
    return param(default, positive, "learning rate")


@dataclass(eq=False, repr=False)
class BackpropSettings:
    """What every solver by backpropagation can be told; names as in pdADMM-G where the thing is the same."""

    layers: int = param(10, whole(1), "number of layers L")
    hidden: int = param(100, whole(1), "neurons of each hidden layer")
    activation: str = param("relu", one_of(ACTIVATIONS), "activation of the hidden layers")
    loss: str = param("cross_entropy", one_of(tuple(LOSSES)), "loss, the mean over the training nodes")
    initial: str = param("orthogonal", one_of(tuple(INITIAL)), "start weights")
    stages: Sequence[int] | None = param(
        None, optional(stage_list), "depths that the network grows through (default: full depth from the start)"
    )
    iterations: int = param(200, whole(1), "iterations of each stage: passes over the training nodes")
    learning_rate: float = learning_rate(0.01)
    weight_decay: float = param(5e-4, non_negative, "L2 penalty of all weights and biases, in the gradient")
    dropout: float = param(0.0, below_one, "share of the hidden activations set to 0 while training")
    batch_size: int | None = param(None, optional(whole(1)), "training nodes of a step (default: all of them)")
    patience: int | None = param(
        None,
        optional(whole(1)),
        "end a stage after this many iterations without a better validation accuracy",
    )
    max_seconds: float | None = param(None, optional(positive), "end training after this many seconds of it")
    seed: int = param(0, whole(0, 2**63 - 1), "seed of the initial weights, the batches and the dropout")
    dtype: str = param("float32", one_of(("float32", "float64")), "number format of weights and features")
    device: str = device_param()

    def checked(self) -> Self:
        """Return a copy with every value checked and every default that depends on others filled in."""
        values = validate(self)
        if values["stages"] is None:
            values["stages"] = (values["layers"],)
        else:
            check_stages(values["stages"], values["layers"])
        return type(self)(**values)
