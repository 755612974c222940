"""Small runs of pdADMM-G whose every iteration is recorded."""

from __future__ import annotations

import numpy as np
from mpi_state import state_of

from pdadmm import PDADMMG, csbm
from pdadmm.admm.network import Network
from pdadmm.data import Graph

__all__ = ["Recorder", "fit", "small_graph", "without_validation"]


def small_graph() -> Graph:
    return csbm(90, num_classes=3, num_features=5, avg_degree=6, seed=3)


def without_validation(graph: Graph) -> Graph:
    splits = graph.splits
    return graph.with_splits(splits | {"val": np.array([], dtype=np.int64)})


def fit(graph, **parameters) -> PDADMMG:
    given = {"layers": 4, "hidden": 6, "hops": 2, "iterations": 4} | parameters
    return PDADMMG(**given).fit(graph)


def last_step(network) -> dict[str, np.ndarray]:
    """The last step of W_1, where its form has one."""
    first = network.layers[0].solver
    return {"0.direction": first.direction.numpy().copy()} if first.name == "cg" else {}


class Recorder:
    """Keeps the state before and after every iteration, and the logits of every evaluation."""

    def __init__(self, monkeypatch) -> None:
        self.networks, self.before, self.after, self.logits = [], [], [], []
        plain_iterate, plain_forward = Network.iterate, Network.forward

        def iterate(network):
            self.networks.append(network)
            self.before.append(state_of(network) | last_step(network))
            plain_iterate(network)
            self.after.append(state_of(network))

        def forward(network, nodes):
            result = plain_forward(network, nodes)
            self.logits.append(result.clone())
            return result

        monkeypatch.setattr(Network, "iterate", iterate)
        monkeypatch.setattr(Network, "forward", forward)
