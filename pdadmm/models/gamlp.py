"""The trained network as a torch module: an MLP on augmented features."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pdadmm.admm.activations import get_activation
from pdadmm.augment import Augmenter
from pdadmm.errors import InputError, reason_of
from pdadmm.files import file_within, parse_json, regular_file
from pdadmm.quantize import digest

if TYPE_CHECKING:
    from pdadmm.models.gnn import GNN

__all__ = ["GAMLP", "load_model", "save_model"]

DTYPES = ({torch.float32}, {torch.float64})


class GAMLP(torch.nn.Module):
    """z_l = p_l W_l^T + b_l, p_{l+1} = f(z_l), on augmented features p_1 (Wang et al. 2022, section III).

    ``widths`` = [n_0, n_1, .., n_L]; ``activation`` a name of ACTIVATIONS. ``layers[l]`` is a torch.nn.Linear.

    >>> GAMLP([4, 3, 2])(torch.zeros(5, 4)).shape
    torch.Size([5, 2])
    """

    FORMAT = "pdadmm-gamlp-2"

    layers: Any  # a ModuleList does not say of what: torch.nn.Linear

    def __init__(self, widths: Sequence[int], activation: str = "relu", dtype: torch.dtype = torch.float32):
        super().__init__()
        self.widths, self.activation_name = [int(n) for n in widths], activation
        self.activation = get_activation(activation)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(m, n, dtype=dtype) for m, n in zip(self.widths, self.widths[1:])
        )

    @classmethod
    def from_weights(cls, weights: Sequence[tuple[Tensor, Tensor]], activation: str) -> GAMLP:
        """Build the module around given (W, b), first layer first; W (n_l, n_{l-1})."""
        widths = [weights[0][0].shape[1], *(len(b) for _, b in weights)]
        with torch.random.fork_rng(devices=[]):  # Linear draws weights that are overwritten here
            model = cls(widths, activation, weights[0][0].dtype)
        with torch.no_grad():
            for layer, (W, b) in zip(model.layers, weights):
                layer.weight.copy_(W)
                layer.bias.copy_(b)
        return model.eval()

    def forward(self, p: Tensor) -> Tensor:
        """Return the logits (V, n_L) of augmented features p (V, n_0)."""
        for layer in self.layers[:-1]:
            p = self.activation(layer(p))
        return self.layers[-1](p)

    def description(self) -> dict:
        """Return what a file says of the network beside its weights."""
        return {"format": self.FORMAT, "widths": self.widths, "activation": self.activation_name}

    @classmethod
    def from_description(cls, described: dict, dtype: torch.dtype) -> GAMLP:
        """Build a network, its weights yet to be loaded, from what ``description`` returned."""
        return cls(described["widths"], described["activation"], dtype)


def _network(described: dict) -> type[GAMLP | GNN]:
    """Return the class behind a file's format; ValueError for another file."""
    from pdadmm.models.gnn import GNN

    for network in (GAMLP, GNN):
        if described.get("format") == network.FORMAT:
            return network
    raise ValueError("its description is of no network of this library")


def save_model(
    path: str | os.PathLike, model: GAMLP | GNN, augmenter: Augmenter | None, classes: Sequence | np.ndarray
) -> None:
    """Write model, augmentation and class names to one safetensors file.

    Tensors are the state_dict's names, "augment.shift" and "augment.scale"; the rest is JSON metadata, with a digest
    of all of it, since safetensors has no checksum.
    """
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    config, arrays = augmenter.state() if augmenter is not None else (None, {})
    tensors |= {f"augment.{name}": torch.from_numpy(array) for name, array in arrays.items()}
    described = model.description() | {"augment": config, "classes": np.asarray(classes).tolist()}
    described["digest"] = model_digest(described, tensors)
    # one key: safetensors writes several in random order, and equal models make equal files
    content = save(tensors, metadata={"pdadmm": json.dumps(described)})
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError:  # no more room, say
        partial.unlink(missing_ok=True)
        raise


def model_digest(described: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return a hex digest of a model's description (without its own digest) and tensors."""
    state = blake2b(digest_size=16)
    state.update(json.dumps({name: described[name] for name in sorted(described) if name != "digest"}).encode())
    for name in sorted(tensors):
        state.update(name.encode() + digest(tensors[name]))
    return state.hexdigest()


def load_model(path: str | os.PathLike) -> tuple[GAMLP | GNN, Augmenter | None, np.ndarray]:
    """Read what ``save_model`` wrote: the model, its augmenter (or None) and its classes, as ``classes_`` has them.

    Raises InputError for a missing, damaged or foreign file; nothing in the file is ever executed, and shapes are
    compared before memory is taken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(regular_file(path)), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        config = parse_json(metadata.get("pdadmm", "{}"))
        return _built(config, tensors)
    except (
        OSError, SafetensorError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, OverflowError,
    ) as error:  # fmt: skip
        remedy = file_within(path, "model.safetensors") or reason_of(error)
        raise InputError("model", str(path), "a file written by save_model", remedy) from None


def _built(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[GAMLP | GNN, Augmenter | None, np.ndarray]:
    """Return what a description and its tensors stand for; any error of Python where they do not fit."""
    network, widths, classes = _network(config), config["widths"], config["classes"]
    if not isinstance(widths, list) or len(widths) < 2 or not all(type(n) is int and n > 0 for n in widths):
        raise ValueError(f"widths {widths}")
    weights = {name: value for name, value in tensors.items() if name.startswith("layers.")}
    dtypes = {value.dtype for value in weights.values()}
    if dtypes not in DTYPES:
        raise ValueError("its weights are not all float32 or all float64")
    if not isinstance(classes, list) or any(isinstance(name, (dict, list)) for name in classes):
        raise ValueError("its classes are not a list of names")
    if config.get("digest") != model_digest(config, tensors):
        raise ValueError("its digest is not that of its contents: the file is damaged")
    with torch.device("meta"):  # shapes without memory, whatever widths say
        model = network.from_description(config, *dtypes)
    model.load_state_dict(weights, assign=True)
    augmenter = None
    if config["augment"] is not None:
        arrays = {name: tensors[f"augment.{name}"].numpy() for name in ("shift", "scale")}
        augmenter = Augmenter.from_state(config["augment"], arrays)
    return model.eval(), augmenter, np.asarray(classes)
