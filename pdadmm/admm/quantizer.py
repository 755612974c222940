"""How pdADMM-G-Q quantizes: what crosses the boundaries between layers, or p itself."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pdadmm.errors import InputError
from pdadmm.parameters import boolean, number, one_of, optional, param, validate, whole_of
from pdadmm.quantize import GRIDS, ROUNDINGS, Coder, Grid, NotFiniteError, make_coder, make_grid

__all__ = ["CODINGS", "Quantizer"]

CODINGS = ("difference", "value", "constrained")
CODE_BITS = (0, 1, 2, 4, 8, 16)


@dataclass(eq=False)
class Quantizer:
    """What pdADMM-G-Q sends instead of float arrays (Wang et al. 2022, Problem 3; docs/math.md).

    ``coding`` "difference" sends the quantized change since the last message, "value" the quantized value;
    "constrained" keeps p_{l+1} itself on a fixed grid Delta_l, so that p needs no rounding on its way, and sends
    q in 32 bits unless ``q_bits`` says otherwise. ``bits`` 0 sends nothing after a stage's start: the control
    experiment. Raises InputError from ``checked``.

    >>> Quantizer(bits=2).checked().delta
    'column'
    """

    bits: int = param(4, whole_of(CODE_BITS), "bits of each value of p and q in a message; 0 is the control")
    coding: str = param("difference", one_of(CODINGS), "what is quantized")
    delta: str | None = param(
        None, optional(one_of(GRIDS)), "grid Delta of the codes (default: column; paper where constrained)"
    )
    delta_low: float | None = param(None, optional(number), "lowest point of the linspace grid")
    delta_high: float | None = param(None, optional(number), "highest point of the linspace grid")
    rounding: str = param("nearest", one_of(ROUNDINGS), "rounding of the codes")
    error_feedback: bool = param(False, boolean, "add what the last message rounded away to the next")
    q_bits: int | None = param(
        None, optional(whole_of((*CODE_BITS, 32))), "bits of q where p has others (default: bits; 32 where constrained)"
    )

    @property
    def constrained(self) -> bool:
        """Whether p itself lives on the grid (Problem 3)."""
        return self.coding == "constrained"

    def checked(self) -> Quantizer:
        """Return a copy with every value checked and every default that depends on others filled in."""
        own = {field.name for field in fields(Quantizer)}
        values = {name: value for name, value in validate(self).items() if name in own}
        constrained = values["coding"] == "constrained"
        values["delta"] = values["delta"] or ("paper" if constrained else "column")
        if values["q_bits"] is None:
            values["q_bits"] = 32 if constrained else values["bits"]
        result = Quantizer(**values)
        ends = result.delta_low is not None, result.delta_high is not None
        if result.delta == "linspace" and not all(ends):
            raise InputError("delta_low, delta_high", "not both given", "given with the grid linspace")
        if result.delta != "linspace" and any(ends):
            raise InputError("delta_low, delta_high", "given", "left out with other grids than linspace")
        if result.delta == "paper" and result.coding == "difference":
            raise InputError("delta", "paper", "used where values are coded or p is constrained, not differences")
        if result.delta == "paper" and result.bits < 5:
            raise InputError("bits", result.bits, "8 or 16 with the paper's grid of 22 points")
        if constrained:
            if not GRIDS[values["delta"]].fixed or result.bits == 0:
                allowed = "a fixed grid (paper, linspace) with 1 to 16 bits where p is constrained"
                raise InputError("delta", result.delta, allowed)
            if result.rounding != "nearest" or result.error_feedback:
                raise InputError("coding", "constrained", "used with nearest rounding and without error feedback")
            result.p_grid()
        result.coder("p")
        result.coder("q")
        return result

    def p_grid(self) -> Grid:
        """Return the fixed grid Delta that p is constrained to."""
        assert self.delta is not None  # checked
        return make_grid(self.delta, self.bits, self.delta_low, self.delta_high)

    def coder(self, kind: str) -> Coder | None:
        """Return a new coder for messages of ``kind`` "p" or "q"; None where the array itself is sent."""
        assert self.delta is not None  # checked
        assert self.q_bits is not None
        bits = self.bits if kind == "p" else self.q_bits
        if bits == 32:
            return None
        mode, delta = self.coding, self.delta
        if self.constrained:
            # p is on the grid already; q is coded like any message, its codes are not bound to Delta
            mode, delta = ("value", delta) if kind == "p" else ("difference", "column")
        ends = (self.delta_low, self.delta_high) if delta == "linspace" else (None, None)
        return make_coder(bits, mode, delta, self.rounding, self.error_feedback, *ends)

    def start_p(self, h: Tensor) -> Tensor:
        """Return p of a stage's start: q itself, or the point of Delta nearest to it."""
        if not self.constrained:
            return h.clone()
        try:
            return self.p_grid().project(h)
        except NotFiniteError:  # shows in the objective, on all ranks at once
            return torch.full_like(h, torch.nan)
