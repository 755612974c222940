"""Which fused form of an update takes given arrays: the C one, the CUDA one, or neither."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import updates

__all__ = ["gpu_factor_for", "gpu_for", "updates_for"]


def updates_for(*arrays: Tensor) -> Any:
    """Return pdadmm.kernels.updates or pdadmm.kernels.gpu, whichever takes these arrays; None where neither does.

    update_z_, update_q_u_, update_u_, assemble_p_, softmax_newton_, extrapolate_, extrapolate_q_, extrapolate_z_ and
    the sums square, distance, link_sums, movement have the same arguments in both.
    """
    return updates if updates.takes(*arrays) else gpu_for(*arrays)


def gpu_for(*arrays: Tensor) -> Any:
    """Return pdadmm.kernels.gpu where it takes these arrays, else None."""
    if arrays[0].is_cpu:
        return None
    from . import gpu  # for who has one

    return gpu if gpu.takes(*arrays) else None


def gpu_factor_for(A: Tensor, *B: Tensor) -> Any:
    """Return pdadmm.kernels.gpu_factor where it inverts A, or solves with A and B; else None."""
    if A.is_cpu:
        return None
    from . import gpu_factor  # for who has one

    return gpu_factor if gpu_factor.takes(A, *B) else None
