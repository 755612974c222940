"""Quantization of arrays and messages: grids, codecs and coders. It knows arrays, not layers or ranks.

Source: pdADMM-G-Q, Wang et al. 2022, arXiv 2105.09837.
"""

from __future__ import annotations

from .codec import Codec, make_codec
from .coders import CODERS, MODES, Coder, digest, make_coder
from .grid import BITS, GRIDS, ROUNDINGS, Grid, make_grid
from .scale import NotFiniteError

__all__ = [
    "BITS",
    "CODERS",
    "GRIDS",
    "MODES",
    "ROUNDINGS",
    "Codec",
    "Coder",
    "Grid",
    "NotFiniteError",
    "digest",
    "make_codec",
    "make_coder",
    "make_grid",
]
