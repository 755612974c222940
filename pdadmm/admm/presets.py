"""Published settings of pdADMM-G under a name: one row each in PRESETS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pdadmm.errors import InputError

__all__ = ["PRESETS", "Preset", "preset_parameters"]


@dataclass(frozen=True)
class Preset:
    """One row: what differs from the defaults; ``quantized`` is for solvers with quantized messages alone."""

    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    quantized: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    row.name: row
    for row in (
        Preset("default", "this library's own defaults"),
        Preset(
            "paper",
            "the published setting on Cora, Citeseer and PubMed (Wang et al. 2022, section V)",
            # rho is left out: it follows nu, and stages: 2, 5, 10 for 10 layers are the default. The start weights are
            # not published: torch's default gives z_1 a deviation of .042, .037 and .007 on these three graphs
            {
                "nu": 1e-4, "rho_schedule": "stall", "iterations": 200, "acceleration": "none",
                "form": "gradient", "first_layer": "gradient", "prox_z": 1.0, "prox_W": 0.0,
                "mu": 0.0, "kappa_first": 0.0, "kappa_identity": 0.0, "first_scale": 0.03,
                "hops": 3, "operator": "sym", "weighting": "powers", "scaling": "none",
            },
            {"coding": "constrained", "delta": "paper", "bits": 8},
        ),
    )
}  # fmt: skip


def preset_parameters(name: str, quantized: bool = False) -> dict[str, Any]:
    """Return the parameters that a row of PRESETS changes, with those of the messages where ``quantized``.

    Raises InputError for a name that is not in PRESETS.

    >>> preset_parameters("paper")["nu"], preset_parameters("default")
    (0.0001, {})
    """
    if name not in PRESETS:
        raise InputError("preset", name, "one of " + ", ".join(PRESETS))
    row = PRESETS[name]
    return {**row.parameters, **(row.quantized if quantized else {})}
