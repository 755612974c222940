"""Ranks with a stand-in device each: rank 0 augments on its own, no other does, and nobody waits.

mpiexec -n 3 python tests/mpi_augment_device.py
"""

from __future__ import annotations

import numpy as np
import torch
from stand_in_device import DEVICE, StandIn

from pdadmm import PDADMMG, csbm
from pdadmm.admm import estimator, solver
from pdadmm.augment import device as hops
from pdadmm.parallel import device, launch

CPU = torch.device("cpu")
GRAPH = csbm(60, num_classes=3, num_features=6, seed=5)
RUN = {"layers": 3, "hidden": 5, "iterations": 3, "hops": 2, "threads": 1}


def main() -> None:
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
    transport = launch.make_transport()
    assert device.own_device("cuda") == torch.device("cuda", transport.local_rank % 2)
    asked = []

    def own_device(name: str) -> torch.device:
        asked.append(name)
        return DEVICE

    device.own_device = own_device
    hops.free_bytes = lambda there: 1 << 40
    solver.choose_device = lambda name, transport: DEVICE if name == "cuda" else CPU
    estimator.check_device = lambda name: None
    with StandIn():
        trained = PDADMMG(**RUN, device="cuda").fit(GRAPH)
    assert asked == (["cuda"] if transport.rank == 0 else [])
    assert trained.augmenter_.device == "auto"
    device.own_device = lambda name: CPU
    plain = PDADMMG(**RUN).fit(GRAPH)
    np.testing.assert_allclose(trained.predict_proba(GRAPH), plain.predict_proba(GRAPH), atol=1e-3)


if __name__ == "__main__":
    main()
