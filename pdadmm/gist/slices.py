"""The wide network out of its homes: its layers' weights, and exact inference in slices of hidden dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdadmm.gist.groups import Matrix
from pdadmm.gist.homes import Homes
from pdadmm.models.gnn import Aggregation, activate
from pdadmm.parallel.transport import Transport
from pdadmm.sampling.network import Features, layer

__all__ = ["SlicedGNN", "infer_in_slices", "layer_of"]


@dataclass
class SlicedGNN:
    """A trained network of which every rank keeps its own homes' hidden dimensions; every use of it is collective.

    ``weights`` are those of this rank's homes, matrix by matrix as ``homes`` cuts them, ``output`` the output's bias.
    """

    homes: Homes
    weights: dict[int, list[Tensor]]
    output: Tensor
    activation: str

    @property
    def architecture(self) -> str:
        return self.homes.architecture

    def state_dict(self) -> dict[str, Tensor]:
        """Return what this rank holds, by home and matrix."""
        own = {f"{home}.{k}": values for home, part in self.weights.items() for k, values in enumerate(part)}
        return own | {"output": self.output}

    def infer(self, S: Aggregation, features: Features, transport: Transport) -> Tensor:
        """Return the logits (V, C) on every rank; ``transport`` joins the ranks that trained it."""
        self.homes.transport = transport
        return infer_in_slices(self.homes, self.weights, self.output, S, features, self.activation)


def layer_of(matrix: Matrix, values: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (W, b) of the rows ``values`` of a matrix; ``bias`` is the output's, for the last one.

    Differentiable. W of the last layer is (C, copies x rows).
    """
    if bias is None:
        return values[:, :-1], values[:, -1]
    W = values.view(len(values), matrix.copies, -1).permute(2, 1, 0)
    return W.reshape(W.shape[0], -1), bias


def infer_in_slices(homes: Homes, weights: Mapping[int, Sequence[Tensor]], output: Tensor, S: Aggregation,
    features: Features, activation: str,
) -> Tensor:  # fmt: skip
    """Return the logits (V, C) of the whole graph on every rank, each home computing its own hidden dimensions.

    No rank holds more than its homes' columns of a layer and one other home's. ``weights`` are those of this rank's
    homes, matrix by matrix, ``output`` the output's bias. Between hidden layers slices S h travel from each home to
    all ranks, at the end partial logits; both as "evaluation". Sums are taken in the order of the homes. Collective.
    """
    nodes = np.arange(S.S.shape[0])
    x = features.rows(nodes)
    h = {
        home: activate(activation, layer(homes.architecture, S, x, *layer_of(homes.matrices[0], own[0])))
        for home, own in weights.items()
    }
    for k in range(1, len(homes.matrices) - 1):
        h = {home: activate(activation, z) for home, z in _hidden_layer(homes, k, weights, S, h, len(nodes)).items()}
    last = len(homes.matrices) - 1
    own = [(h[home] @ weights[home][last]).numpy() for home in homes.own]
    parts = homes.transport.allgather(own, "evaluation")
    total = torch.from_numpy(sum(part for rank in parts for part in rank))
    if homes.matrices[last].copies == 1:
        return S(total) + output
    itself, mixed = total.chunk(2, dim=1)
    return itself + S(mixed) + output


def _hidden_layer(
    homes: Homes, k: int, weights: Mapping[int, Sequence[Tensor]], S: Aggregation, h: dict[int, Tensor], nodes: int
) -> dict[int, Tensor]:
    """Return z (V, own rows) of matrix k for this rank's homes, from h (V, own columns) of theirs."""
    matrix, rank = homes.matrices[k], homes.transport.rank
    z = {home: own[k][:, -1].repeat(nodes, 1) for home, own in weights.items()}
    width = (matrix.shape[1] - 1) // matrix.copies
    for rank_of_source, host in enumerate(homes.hosts):
        for source in host:
            run = homes.run(homes.matrices[k - 1], source)
            if rank_of_source == rank:
                mixed = S(h[source])
                slice_ = mixed if matrix.copies == 1 else torch.cat([h[source], mixed], dim=1)
                for peer in range(homes.transport.size):
                    if peer != rank:
                        homes.transport.send(slice_, peer, "evaluation")
            else:
                slice_ = torch.empty(nodes, matrix.copies * len(run), dtype=homes.dtype)
                homes.transport.receive(slice_, rank_of_source, "evaluation")
            for home, own in weights.items():
                for copy, part in enumerate(slice_.split(len(run), dim=1)):
                    z[home] += part @ own[k][:, copy * width + run.start : copy * width + run.stop].T
    return z
