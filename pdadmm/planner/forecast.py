"""A forecast of each placement of a training: memory, bytes, seconds, and whether it can run."""

from __future__ import annotations

from dataclasses import dataclass

from pdadmm.parallel.rank_grid import RankGrid, grids_of
from pdadmm.planner.disk import block_nodes, block_plan, disk_bytes, from_disk, pass_memory, pass_seconds
from pdadmm.planner.gnn import GNNJob, epoch_bytes, epoch_memory, epoch_seconds
from pdadmm.planner.job import Job
from pdadmm.planner.machine import Machine
from pdadmm.planner.memory import peak
from pdadmm.planner.simulate import Conditions, Link, simulate
from pdadmm.planner.traffic import iteration_bytes

__all__ = ["Forecast", "Setting", "forecast_gnn", "forecast_grid", "forecast_streamed", "forecasts"]


@dataclass(frozen=True)
class Setting:
    """Where a training is to run: ``ranks``, ``per_host`` of them on a host, ``link`` between, ``memory`` of each."""

    machine: Machine
    ranks: int
    per_host: int
    link: Link
    memory: int | None = None
    conditions: Conditions = Conditions()


@dataclass(frozen=True)
class Forecast:
    """What one placement needs: ``memory`` of the rank that needs most, and of an iteration ``sent``, ``seconds``.

    ``sent``: bytes, by all ranks; ``phase``: when memory is highest; ``disk``: bytes read and written; ``fits``:
    whether memory suffices, True without a limit. ``network``: what is trained, a GA-MLP or a GCN, whose iteration is
    an epoch.
    """

    name: str
    ranks: int
    memory: float
    phase: str
    sent: float
    seconds: float
    fits: bool
    disk: float = 0.0
    network: str = "GA-MLP"
    grid: RankGrid | None = None


def forecast_grid(job: Job, grid: RankGrid, setting: Setting, iterations: int = 3) -> Forecast:
    """Return the forecast of a grid of ranks: layers (N = 1), nodes (G = 1) or both."""
    kind = "layer" if grid.shards == 1 else "node" if grid.groups == 1 else "2-D"
    ranks = grid.groups * grid.shards
    memory, phase = peak(job, grid)
    memory += setting.machine.process
    crowd = min(setting.per_host, ranks)
    told = simulate(job, grid, setting.machine, crowd, setting.link, iterations, setting.conditions)
    sent = iteration_bytes(job, grid)
    return Forecast(f"{kind} {grid}", ranks, memory, phase, sent, told.seconds, _fits(memory, setting), grid=grid)


def forecast_streamed(job: Job, setting: Setting) -> Forecast:
    """Return the forecast of one process that streams its state, and X, from disk in blocks of nodes.

    The blocks are those that the solver takes under the limit of memory.
    """
    job, machine = from_disk(job), setting.machine
    limit = None if setting.memory is None else int(setting.memory - machine.process)
    block = block_nodes(job, limit)
    memory = machine.process + pass_memory(job, block, in_memory=False)
    fits = limit is None or (limit >= block_plan(job).least() and _fits(memory, setting))
    seconds = pass_seconds(job, block, machine)
    return Forecast("out-of-core", 1, memory, "iteration", 0, seconds, fits, disk_bytes(job, block))


def forecast_gnn(job: GNNJob, setting: Setting, mixed: bool) -> Forecast:
    """Return the forecast of a GCN on the same graph, by halo exchange or all-to-alls of slices."""
    memory = setting.machine.process + epoch_memory(job, setting.ranks, mixed)
    crowd = min(setting.per_host, setting.ranks)
    seconds = epoch_seconds(job, setting.ranks, mixed, setting.machine, setting.link, crowd)
    return Forecast(
        "all-to-all" if mixed else "halo", setting.ranks, memory, "training",
        epoch_bytes(job, setting.ranks, mixed), seconds, _fits(memory, setting), network="GCN",
    )  # fmt: skip


def _fits(memory: float, setting: Setting) -> bool:
    return setting.memory is None or memory <= setting.memory


def forecasts(job: Job, gnn: GNNJob, setting: Setting) -> list[Forecast]:
    """Return a forecast of every grid of the ranks, of one process from disk, and of a GCN's two placements."""
    grids = grids_of(setting.ranks, job.layers, job.nodes)
    found = [forecast_grid(job, grid, setting) for grid in grids]
    if job.first_layer != "kernel":  # all rows of the kernel's inverse are needed at once
        found.append(forecast_streamed(job, setting))
    return [*found, forecast_gnn(gnn, setting, mixed=False), forecast_gnn(gnn, setting, mixed=True)]
