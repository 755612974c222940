"""The hyper-parameters of pdADMM-G and their checked form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.label_start import INITIAL
from pdadmm.admm.losses import LOSSES
from pdadmm.admm.products import PRODUCTS
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.schedule import RHO_SCHEDULES
from pdadmm.errors import InputError
from pdadmm.parallel.device import device_param
from pdadmm.parallel.rank_grid import grid_name
from pdadmm.parameters import (
    check_stages,
    instance_of,
    memory_size,
    non_negative,
    one_of,
    optional,
    param,
    positive,
    stage_list,
    validate,
    whole,
)

__all__ = ["ADMMSettings", "check_streamed", "default_stages"]


ON_DIVERGENCE = ("stop", "backoff")


@dataclass(eq=False, repr=False)
class ADMMSettings:
    """What pdADMM-G itself can be told; the names are the paper's where it has one."""

    layers: int = param(10, whole(1), "number of layers L")
    hidden: int = param(100, whole(1), "neurons of each hidden layer")
    nu: float = param(0.3, positive, "penalty of the relaxed equations, beside the loss summed over nodes")
    rho: float | None = param(None, optional(positive), "penalty of p_{l+1} = q_l (default: nu)")
    mu: float = param(0.0, non_negative, "ridge mu/2 |W_l|^2 of layers 2..L; a layer's kappa is mu/nu")
    kappa_first: float = param(
        0.2,
        non_negative,
        "ridge kappa_1 on W_1, in units of the mean squared length of a row of p_1; fixed, whatever nu",
    )
    kappa_identity: float = param(
        0.01, non_negative, "ridge of hidden W toward I, in units of the mean diagonal of p^T p"
    )
    prox_W: float = param(
        0.1,
        non_negative,
        "weight that holds W at its last value, exact form, in units of the mean diagonal of p^T p",
    )
    prox_z: float = param(
        0.1, non_negative, "weight that holds z at its last value, in units of nu (paper: 1)"
    )
    activation: str = param("relu", one_of(ACTIVATIONS), "activation of the hidden layers")
    first_scale: float = param(0.1, positive, "deviation of z_1 by random weights, or by the codes of initial labels")
    initial: str = param(
        "random",
        one_of(INITIAL),
        "start weights: random, or by ridge regression onto the labels, with hidden layers at I",
    )
    acceleration: str = param(
        "first-stage", one_of(tuple(ACCELERATIONS)), "stages in which q, u and z are extrapolated (Nesterov)"
    )
    loss: str = param("cross_entropy", one_of(tuple(LOSSES)), "loss, summed over the training nodes")
    form: str = param(
        "auto", one_of(("auto", "exact", "gradient")), "p- and W-updates: Cholesky solves or majorised steps"
    )
    first_layer: str = param(
        "auto",
        one_of(("auto", *FIRST_LAYERS)),
        "how W_1 is solved: a factor computed once, gradient steps, or conjugate gradients (cg)",
    )
    stages: Sequence[int] | None = param(
        None, optional(stage_list), "depths that the network grows through (default: 2, half of L, L)"
    )
    iterations: int = param(24, whole(1), "iterations of each stage")
    rho_schedule: str = param("fixed", one_of(tuple(RHO_SCHEDULES)), "whether rho changes while training")
    tol: float = param(0.0, non_negative, "end a stage when |p - q| <= tol |q| over all layers; 0 is never")
    patience: int | None = param(
        None,
        optional(whole(1)),
        "end a stage after this many iterations without a better validation accuracy",
    )
    on_divergence: str = param(
        "stop",
        one_of(ON_DIVERGENCE),
        "what follows a value that is not finite: stop, or back off to the best weights so far and rho tenfold",
    )
    grid: str = param("auto", grid_name, "ranks of an MPI run as layer groups x node shards")
    max_seconds: float | None = param(None, optional(positive), "end training after this many seconds of it")
    quantizer: Quantizer | None = param(
        None, optional(instance_of(Quantizer)), "how p and q are quantized (default: not at all)"
    )
    seed: int = param(0, whole(0, 2**63 - 1), "seed of the initial weights")
    dtype: str = param("float32", one_of(("float32", "float64")), "number format of the state")
    products: str = param(
        "full",
        one_of(tuple(PRODUCTS)),
        "number format of products: that of the state, TF32, bf16, or bf16 in two parts, which is near float32",
    )
    device: str = device_param()
    device_memory: int | str | None = param(
        None,
        optional(memory_size),
        "limit on the GPU's memory, such as 8GiB: X and the state stay in main memory and pass through in blocks",
    )

    def checked(self) -> Self:
        """Return a copy with every value checked and every default that depends on others filled in."""
        values = validate(self)
        if values["rho"] is None:
            values["rho"] = values["nu"]
        if values["quantizer"] is not None:
            values["quantizer"] = values["quantizer"].checked()
        stages, layers = values["stages"], values["layers"]
        if stages is None:
            values["stages"] = default_stages(layers)
        else:
            check_stages(stages, layers)
        settings = type(self)(**values)
        check_tol(settings)
        check_device_memory(settings)
        if settings.products != "full" and settings.dtype != "float32":
            raise InputError("products", settings.products, f"full with dtype {settings.dtype}")
        return settings

    def solves_exactly(self, width: int, nodes: int) -> bool:
        """Whether p and W of a layer this wide are solved exactly: Cholesky work grows as n^3, products as V n^2."""
        return self.form == "exact" or (self.form == "auto" and width <= 8 * nodes)


def check_tol(settings: ADMMSettings) -> None:
    """Raise InputError where ``tol`` would end every stage at once."""
    if settings.tol and settings.quantizer is not None and settings.quantizer.bits == 0:
        raise InputError("tol", settings.tol, "0 with 0 bits, where p and q as sent never differ")


def check_device_memory(settings: ADMMSettings) -> None:
    """Raise InputError where a limit on device memory goes with something that it cannot go with."""
    limit = settings.device_memory
    if limit is None:
        return
    if settings.device == "cpu":
        remedy = "memory, for training from disk, limits main memory"
        raise InputError("device_memory", limit, "left out with device cpu", remedy)
    if settings.quantizer is not None:
        remedy = "the scale of a message needs all nodes before any is quantized"
        raise InputError("device_memory", limit, "left out with quantized messages", remedy)
    check_streamed(settings, "device_memory")


def check_streamed(settings: ADMMSettings, limit: str) -> None:
    """Raise InputError where something needs all nodes at once, which training under the ``limit`` reads in blocks."""
    if settings.first_layer == "kernel":
        remedy = "gram has the same minimiser"
        raise InputError("first_layer", settings.first_layer, f"auto, gram, gradient or cg with {limit}", remedy)


def default_stages(layers: int) -> tuple[int, ...]:
    """Return the distinct depths of 2, ceil(L/2), L that make sense for L layers.

    >>> default_stages(10), default_stages(3), default_stages(1)
    ((2, 5, 10), (2, 3), (1,))
    """
    return tuple(sorted({min(2, layers), max(math.ceil(layers / 2), min(2, layers)), layers}))
