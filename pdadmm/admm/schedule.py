"""How rho may change while training: one row each in RHO_SCHEDULES."""

from __future__ import annotations

from typing import Any

__all__ = ["RHO_SCHEDULES", "FixedRho", "StallRho"]


class FixedRho:
    """rho stays as given."""

    needs_objective = False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs: nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""

    def next(self, rho: float, cost: float) -> float:
        """Return rho of the next iteration."""
        return rho


class StallRho:
    """rho grows tenfold, to at most 1, when the cost fails to fall by 1e-3 of itself twice in a row.

    The rule of the authors' experiments (Wang et al. 2022, section V). ``cost`` is the objective of the
    relaxed problem after an iteration; it is a sum over all ranks, so its time counts as training.

    >>> schedule = StallRho()
    >>> [schedule.next(0.01, cost) for cost in (5.0, 5.0, 5.0)]
    [0.01, 0.01, 0.1]
    """

    needs_objective = True

    def __init__(self) -> None:
        self.best, self.stalled = float("inf"), 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs: the least cost, and for how long it has stood."""
        return {"best": self.best, "stalled": self.stalled}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.best, self.stalled = state["best"], state["stalled"]

    def next(self, rho: float, cost: float) -> float:
        """Return rho of the next iteration, given the cost after this one."""
        falls = cost < self.best * (1 - 1e-3) if self.best < float("inf") else True
        self.best = min(self.best, cost)
        self.stalled = 0 if falls else self.stalled + 1
        if self.stalled < 2 or rho >= 1.0:
            return rho
        self.stalled = 0
        return min(1.0, 10.0 * rho)


RHO_SCHEDULES: dict[str, type[FixedRho | StallRho]] = {"fixed": FixedRho, "stall": StallRho}
