"""Graph augmentation: node features seen through powers of a graph operator, scaled for training."""

from __future__ import annotations

from pdadmm.augment.augmenter import AUGMENTATION, Augmenter
from pdadmm.augment.factors import hop_factors
from pdadmm.augment.hops import WEIGHTINGS, hop_weights, propagate
from pdadmm.augment.operators import OPERATORS, Operator, propagation_matrix
from pdadmm.augment.product import spmm
from pdadmm.augment.scaling import SCALINGS, Scaler, Scaling

__all__ = [
    "AUGMENTATION",
    "OPERATORS",
    "SCALINGS",
    "WEIGHTINGS",
    "Augmenter",
    "Operator",
    "Scaler",
    "Scaling",
    "hop_factors",
    "hop_weights",
    "propagate",
    "propagation_matrix",
    "spmm",
]
