"""pdadmm: graph-augmented MLPs trained by pdADMM-G, every layer updated in parallel.

The public names load on first use, so that ``import pdadmm`` stays light.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Adadelta": "pdadmm.baselines.estimator",
    "Adagrad": "pdadmm.baselines.estimator",
    "Adam": "pdadmm.baselines.estimator",
    "Augmenter": "pdadmm.augment",
    "DivergenceError": "pdadmm.errors",
    "GAMLP": "pdadmm.models.gamlp",
    "GCN": "pdadmm.baselines.gcn",
    "GD": "pdadmm.baselines.estimator",
    "GIST": "pdadmm.gist.estimator",
    "Graph": "pdadmm.data",
    "History": "pdadmm.history",
    "InputError": "pdadmm.errors",
    "MixGCN": "pdadmm.baselines.gcn",
    "PDADMMG": "pdadmm.admm.estimator",
    "PDADMMGQ": "pdadmm.admm.estimator",
    "Quantizer": "pdadmm.admm.quantizer",
    "SampledGNN": "pdadmm.sampling.estimator",
    "Trace": "pdadmm.trace",
    "csbm": "pdadmm.data",
    "digits": "pdadmm.data",
    "from_networkx": "pdadmm.data",
    "from_pyg": "pdadmm.data",
    "load_dataset": "pdadmm.data",
    "load_model": "pdadmm.models.gamlp",
    "make_splits": "pdadmm.data",
}

__all__ = ["__version__", *_HOMES]

if any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")):  # under a launcher
    from pdadmm.parallel.launch import install_abort_hook, launched_size

    install_abort_hook(launched_size())

if TYPE_CHECKING:  # what editors see
    from pdadmm.admm.estimator import PDADMMG, PDADMMGQ
    from pdadmm.admm.quantizer import Quantizer
    from pdadmm.augment import Augmenter
    from pdadmm.baselines.estimator import GD, Adadelta, Adagrad, Adam
    from pdadmm.baselines.gcn import GCN, MixGCN
    from pdadmm.data import Graph, csbm, digits, from_networkx, from_pyg, load_dataset, make_splits
    from pdadmm.errors import DivergenceError, InputError
    from pdadmm.gist.estimator import GIST
    from pdadmm.history import History
    from pdadmm.models.gamlp import GAMLP, load_model
    from pdadmm.sampling.estimator import SampledGNN
    from pdadmm.trace import Trace


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'pdadmm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
