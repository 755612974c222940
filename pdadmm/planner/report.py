"""What ``pdadmm train`` says of its own run: predicted beside measured."""

from __future__ import annotations

from typing import Any

from pdadmm.admm.settings import ADMMSettings
from pdadmm.baselines.gcn import FullGraph
from pdadmm.baselines.settings import BackpropSettings
from pdadmm.console import human_bytes, human_seconds
from pdadmm.data import Graph
from pdadmm.gist.estimator import GIST
from pdadmm.planner.forecast import Setting
from pdadmm.planner.machine import known_machine, machine_folder
from pdadmm.planner.runs import (
    Told,
    admm_run,
    backprop_run,
    full_graph_run,
    gist_run,
    sampled_run,
    streamed_run,
)
from pdadmm.planner.simulate import Link
from pdadmm.sampling.estimator import SampledGNN

__all__ = ["predict_run", "sentence", "warm"]


def warm(settings: Any) -> None:
    """Load what torch loads as it makes its first optimiser, some 70 MB, which are not a run's."""
    if hasattr(settings, "optimizer"):
        import torch

        settings.optimizer([torch.zeros(1)])


def predict_run(
    settings: Any, graph: Graph | Any, summary: dict[str, Any], base: int
) -> dict[str, float | None] | None:
    """Return what a finished run was to need, from its settings alone; None for a solver without a model.

    ``settings`` are checked ones, ``base`` is the memory before the run. ``seconds_per_iteration`` is there where there
    is a model of them, None without a calibration of this machine; ``disk_bytes_per_iteration`` where a run from disk
    is foreseen.
    """
    told = _told(settings, graph, summary)
    if told is None:
        return None
    memory = None if told.memory is None else base + told.memory
    found = {"bytes_per_iteration": told.sent, "peak_rss_bytes": memory}
    if told.timed:
        found["seconds_per_iteration"] = told.seconds
    if told.disk is not None:
        found["disk_bytes_per_iteration"] = told.disk
    return found


def _told(settings: Any, graph: Graph | Any, summary: dict[str, Any]) -> Told | None:
    """Ask the model of the solver whose settings these are."""
    machine, ranks, limit = known_machine(machine_folder()), summary["ranks"], summary.get("memory_bytes")
    setting = None if machine is None else Setting(machine, ranks, ranks, Link(machine.latency, machine.bandwidth))
    if isinstance(settings, ADMMSettings):
        if limit is not None:
            return streamed_run(settings, graph, limit, setting)
        return admm_run(settings, graph, summary, setting)
    if isinstance(settings, BackpropSettings):
        return backprop_run(settings, graph, summary, setting)
    if isinstance(settings, FullGraph):
        return full_graph_run(settings, graph, summary, setting)
    if isinstance(settings, SampledGNN):
        return Told(0) if limit is not None else sampled_run(settings, graph, summary, setting)
    return gist_run(settings, graph, summary, setting) if isinstance(settings, GIST) else None


def sentence(summary: dict[str, Any], sent: float) -> str | None:
    """Return predicted beside measured in a line; ``sent`` are the bytes of an iteration."""
    told = summary["predicted"]
    if told is None:
        return None
    shown = {
        "seconds": ("seconds_per_iteration", human_seconds, summary["seconds_per_iteration"]),
        "bytes": ("bytes_per_iteration", human_bytes, sent),
        "disk": ("disk_bytes_per_iteration", human_bytes, summary.get("disk_bytes_per_iteration")),
        "memory": ("peak_rss_bytes", human_bytes, summary["peak_rss_bytes"]),
    }
    parts = [
        f"{word} {human(told[key])} / {human(found)}"
        for word, (key, human, found) in shown.items()
        if told.get(key) is not None and found is not None
    ]
    return "predicted / measured, an iteration: " + ", ".join(parts)
