"""Which placement to take, and why, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from pdadmm.console import human_bytes, human_seconds
from pdadmm.parallel.rank_grid import RankGrid
from pdadmm.planner.forecast import Forecast, Setting
from pdadmm.planner.job import Job
from pdadmm.planner.simulate import simulate

__all__ = ["choose", "explain", "simulated", "table"]


def choose(found: Sequence[Forecast]) -> Forecast | None:
    """Return the GA-MLP's placement of least seconds among those that fit, None where none fits.

    Within 2 % fewer bytes decide, as seconds are not known better. A GCN is another network, and is not chosen.
    """
    fitting = [one for one in found if one.fits and one.network == "GA-MLP"]
    if not fitting:
        return None
    least = min(one.seconds for one in fitting)
    return min((one for one in fitting if one.seconds <= 1.02 * least), key=lambda one: one.sent + one.disk)


def table(found: Sequence[Forecast]) -> str:
    """Return a table of forecasts, one line each."""
    lines = [f"{'placement':14} {'ranks':>6} {'memory/rank':>12} {'sent':>10} {'disk':>10} {'seconds':>12}  fits"]
    lines += [
        f"{one.name:14} {one.ranks:6} {human_bytes(one.memory):>12} {human_bytes(one.sent):>10} "
        f"{human_bytes(one.disk):>10} {human_seconds(one.seconds):>12}  {'yes' if one.fits else 'no'}"
        for one in found
    ]
    return "\n".join(lines)


def explain(job: Job, found: Sequence[Forecast], setting: Setting) -> str:
    """Return the recommendation and its reasons as sentences."""
    best = choose(found)
    own = [one for one in found if one.network == "GA-MLP"]
    if best is None:
        least = min(own, key=lambda one: one.memory)
        return (
            f"None fits into {human_bytes(setting.memory or 0)} a rank: {least.name} needs least, "
            f"{human_bytes(least.memory)}. Take more ranks, a narrower network, or more memory."
        )
    words = [f"Take {best.name}: {human_seconds(best.seconds)} an iteration, {human_bytes(best.memory)} a rank."]
    words.append(_reason(job, best))
    words.append(f"Memory is highest during: {best.phase}.")
    others = sorted((one for one in own if one is not best and one.fits), key=lambda one: one.seconds)
    if others:
        words.append(f"The next, {others[0].name}, takes {others[0].seconds / best.seconds:.2f} times as long.")
    tight = [one.name for one in own if not one.fits]
    if tight:
        words.append(f"Without room in {human_bytes(setting.memory or 0)}: {', '.join(tight)}.")
    words.append("A GCN's placements, halo and all-to-all, are of another network: an epoch is one step of Adam.")
    return "\n".join(words)


def _reason(job: Job, best: Forecast) -> str:
    if best.grid is None:
        return f"The state stays on disk and {human_bytes(best.disk)} pass through memory in an iteration."
    N = best.grid.shards
    share = f"Each rank holds {_layers(job, best.grid.groups)}"
    if N == 1:
        return f"{share} and all {job.nodes:,} nodes; only p and q travel, behind work."
    rows = f"{-(-job.nodes // N):,} of {job.nodes:,} nodes"
    return f"{share} and {rows}; sums of W's moments over the {N} shards are waited for."


def _layers(job: Job, groups: int) -> str:
    least, most = job.layers // groups, -(-job.layers // groups)
    if groups == 1:
        return f"all {job.layers} layers"
    return f"about {least}{'' if least == most else f' to {most}'} of {job.layers} layers"


def simulated(job: Job, grid: RankGrid, setting: Setting, iterations: int) -> str:
    """Simulate a grid and say what its ranks do; without a grid that fits the first of the table is taken."""
    crowd = min(setting.per_host, grid.groups * grid.shards)
    told = simulate(job, grid, setting.machine, crowd, setting.link, iterations, setting.conditions)
    total = sum(told.iterations)
    busy = [work / total for work in told.work]
    waited = max(told.waited) / total
    return (
        f"Simulated {iterations} iterations of {grid}: {human_seconds(told.seconds)} each, slowest "
        f"{human_seconds(max(told.iterations))}; ranks have work for {min(busy):.0%} to {max(busy):.0%} of the time at "
        f"full speed, and wait for others up to {waited:.0%} of it."
    )
