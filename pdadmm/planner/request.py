"""From what a person gives ``pdadmm plan`` to the shapes that the model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.settings import default_stages
from pdadmm.console import human_bytes
from pdadmm.planner.forecast import Forecast, Setting
from pdadmm.planner.gnn import GNNJob, random_halo
from pdadmm.planner.job import Job
from pdadmm.planner.machine import Machine
from pdadmm.planner.simulate import Conditions, Link

__all__ = ["gnn_job", "graph_bytes", "job_of", "launch_line", "setting_of"]

ITEMSIZES = {"float32": 4, "float64": 8}


def job_of(values: Mapping[str, Any]) -> Job:
    """Return the GA-MLP: n_0 is (K + 1) F."""
    hidden = [values["hidden"]] * (values["layers"] - 1)
    widths = ((values["hops"] + 1) * values["features"], *hidden, values["classes"])
    quantizer = None if values["bits"] == 32 else Quantizer(bits=values["bits"]).checked()
    size = ITEMSIZES[values["dtype"]]
    accelerated = len(default_stages(values["layers"])) == 1  # the first stage is, by default
    return Job(values["train_nodes"], values["labelled_nodes"], widths, size, quantizer, accelerated=accelerated)


def _nonzeros(values: Mapping[str, Any]) -> int:
    return 2 * values["edges"] + values["nodes"]


def gnn_job(values: Mapping[str, Any]) -> GNNJob:
    """Return a GCN of the same depth and width on the whole graph, S = (A + I) scaled."""
    hidden = [values["hidden"]] * (values["layers"] - 1)
    nodes, nonzeros, halo = values["nodes"], _nonzeros(values), values["halo_rows"]
    if halo is None:
        halo = random_halo(nodes, nonzeros, values["ranks"])
    widths = (values["features"], *hidden, values["classes"])
    return GNNJob(nodes, nonzeros, widths, halo, ITEMSIZES[values["dtype"]])


def setting_of(values: Mapping[str, Any], machine: Machine, overlap: bool) -> Setting:
    """Return where it is to run: hosts like ``machine``."""
    link = Link(values["latency"] or machine.latency, values["bandwidth"] or machine.bandwidth)
    told = {name: values[name] for name in ("straggler", "jitter", "seed", "slow_link")}
    per_host = values["ranks_per_host"] or machine.cores
    return Setting(machine, values["ranks"], per_host, link, values["memory"], Conditions(overlap=overlap, **told))


def launch_line(values: Mapping[str, Any], best: Forecast) -> str:
    """Return the command that trains as ``best`` says."""
    flags = ["--dataset GRAPH", *(f"--{name} {values[name]}" for name in ("layers", "hidden", "hops", "dtype"))]
    if best.grid is None:
        return " ".join(["Launch: pdadmm train", *flags, f"--memory {_size(values['memory'])} --scratch DIR"])
    if values["bits"] != 32:
        flags.append(f"--solver pdadmm-g-q --bits {values['bits']}")
    return " ".join([f"Launch: mpirun -n {values['ranks']} python -m pdadmm train", *flags, f"--grid {best.grid}"])


def _size(nbytes: int | None) -> str:
    """Return a memory limit as ``pdadmm train`` takes it."""
    if nbytes is None:
        return "SIZE"
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1, ""))
    return next(f"{nbytes // unit}{name}" for unit, name in units if nbytes % unit == 0)


def graph_bytes(values: Mapping[str, Any]) -> str:
    """Say what the graph itself takes, which is not in the table."""
    nodes, size = values["nodes"], ITEMSIZES[values["dtype"]]
    adjacency, features = 4 * _nonzeros(values) + 8 * (nodes + 1), 4 * nodes * values["features"]
    X = size * values["labelled_nodes"] * values["features"] * (values["hops"] + 1)
    return (
        f"Not in the table: the graph, {human_bytes(adjacency)} of adjacency and {human_bytes(features)} of features, "
        f"which every rank reads; its augmentation makes {human_bytes(X)}."
    )
