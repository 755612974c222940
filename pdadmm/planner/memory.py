"""Peak memory of a rank of pdADMM-G: what each phase of a run holds at once (docs/plan.md)."""

from __future__ import annotations

from pdadmm.parallel.rank_grid import RankGrid
from pdadmm.planner.job import Job, largest, placement

__all__ = ["peak", "phases", "state"]


def state(job: Job, layers: range, V: int, N: int) -> dict[str, float]:
    """Return the bytes that a rank with these layers holds from iteration to iteration, by name."""
    s, widths, last = job.itemsize, job.widths, job.layers - 1
    hidden = [widths[layer + 1] for layer in layers if layer < last]
    below = [widths[layers.start]] if layers.start > 0 else []
    held = {
        "X": s * N * widths[0] if 0 in layers else 0,
        "first layer": _first(job, V, N) if 0 in layers else 0,
        "p, q, u": s * V * sum(n * _arrays_of_link(job) for n in hidden + below),
        "messages": _buffers(job, layers, V),
        "z, r": 2 * s * V * sum(widths[layer + 1] for layer in layers),
        "W, b": s * sum(_weights(job, layer) for layer in layers),
        "best W, b": s * sum(_weights(job, layer, target=False) for layer in layers),
    }
    held["scratch"] = s * V * sum({widths[layer] for layer in layers if layer > 0 and job.exact(layer)})
    if 0 in layers and not _is(job, "gradient"):
        held["best W, b"] += s * V * widths[1]  # the snapshot's a
    if 0 in layers and _is(job, "cg"):
        held["best W, b"] += s * widths[1] * (V + widths[0])  # and its last step
    return held


def _is(job: Job, name: str) -> bool:
    return job.first.name == name


def _first(job: Job, V: int, N: int) -> float:
    """Bytes of the first layer's factor, or last step, and of a = p_1 W_1^T + b_1."""
    n_0, n_1 = job.widths[:2]
    kernel = V * V + (N - V) * V + V * n_1
    factor = {"gram": n_0 * n_0, "kernel": kernel, "gradient": 0, "cg": n_1 * (V + n_0)}[job.first.name]
    return job.itemsize * (factor + V * n_1)


def _arrays_of_link(job: Job) -> int:
    """Arrays (V, n) that one side, or both, hold of a boundary: p, q, u, what coded channels and momentum keep."""
    coded = [job.quantizer is not None and job.quantizer.coder(kind) is not None for kind in ("p", "q")]
    momentum = (4 + coded[1]) if job.accelerated else 0
    return 3 + sum(coded) + momentum


def _buffers(job: Job, layers: range, V: int) -> float:
    """Bytes of packed messages; unquantized ones are the arrays themselves."""
    if job.quantizer is None:
        return 0
    total = 0.0
    for boundary in range(max(0, layers.start - 1), min(layers.stop, job.layers - 1)):
        remote = boundary == layers.start - 1 or boundary == layers.stop - 1
        total += (1 + remote) * sum(job.coded_bytes(job.widths[boundary + 1], kind, V) for kind in ("p", "q")
                                    if job.quantizer.coder(kind) is not None)  # fmt: skip
    return total


def _weights(job: Job, layer: int, target: bool = True) -> int:
    m, n = job.widths[layer], job.widths[layer + 1]
    pulled = target and 0 < layer < job.layers - 1 and m == n
    return n * (m + 1) + (n * n if pulled else 0)


def phases(job: Job, layers: range, V: int, N: int) -> dict[str, float]:
    """Return the bytes at the height of each phase of a rank: its start, an iteration, an evaluation."""
    held = sum(state(job, layers, V, N).values())
    s, widths = job.itemsize, job.widths
    passing = s * _evaluation(job, layers, V, N)
    found = {
        "iteration": held + s * V * _largest_update(job, layers),
        "evaluation": held + passing,
    }
    if 0 in layers:
        X, factor = s * N * widths[0], s * {"gram": widths[0], "kernel": V}.get(job.first.name, 0) ** 2
        found["first layer's factor"] = X + 3 * factor
    return found


def _largest_update(job: Job, layers: range) -> int:
    """Columns of (V, .) that the largest update has beside the state."""
    widths = job.widths
    found = [2 * widths[layer] if not job.exact(layer) else 0 for layer in layers if layer > 0]
    if 0 in layers:
        # the new a beside the old; the steps of cg and their products
        found.append(4 * widths[1] if _is(job, "cg") else widths[1])
    if job.accelerated:
        found.append(max(widths[layer + 1] for layer in layers))
    return max(found, default=0)


def _evaluation(job: Job, layers: range, V: int, N: int) -> float:
    """Numbers that live while the labelled nodes pass through a rank's layers: h, h W^T + b and f of it."""
    widths, last = job.widths, job.layers - 1
    h = [0.0 if layer == 0 else N * widths[layer] for layer in layers]
    made = [
        (N - V) * widths[1] + N * widths[1] if layer == 0 else N * widths[layer + 1] for layer in layers
    ]
    most = [a + b for a, b in zip(h, made)]
    most += [
        before + 2 * N * widths[layer + 1] for layer, before in zip(layers, h) if layer < last
    ]
    return max(most)


def peak(job: Job, grid: RankGrid) -> tuple[float, str]:
    """Return the bytes of the rank that needs most, above a process that does nothing, and in which phase."""
    V, N = largest(job.nodes, grid), largest(job.rows, grid)
    # the others' rows have gone, and the first shard's are copied beside the whole
    dealt = [(job.itemsize * (job.rows + N) * job.widths[0], "X dealt to the shards")] if grid.shards > 1 else []
    found = dealt + [
        (nbytes, phase)
        for layers in placement(job, grid)
        if len(layers)
        for phase, nbytes in phases(job, layers, V, N).items()
    ]
    return max(found)
