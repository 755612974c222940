"""Which partitions are in the buffer when, and which training nodes have their turn meanwhile."""

from __future__ import annotations

import numpy as np

from pdadmm.data.splits import generator
from pdadmm.sampling.neighbours import shuffled

__all__ = ["BufferStates"]


class BufferStates:
    """The states that the buffer goes through in an iteration, drawn anew for each.

    All ``count`` partitions stand in a random order; state j holds ``held`` of them in a row, and the next state begins
    ``swapped`` further on. So each is read once an iteration; the order begins with what the iteration before ended
    with, and those are not read at all. A training node has its turn in one of the states that hold its partition,
    drawn at random; a state without training nodes is passed over. With ``held`` = ``count`` there is one state, and
    the training nodes are in the order in which NeighbourSampler has them.

    >>> states = BufferStates(np.arange(8), 2, 4, held=2, swapped=1, seed=0)
    >>> [sum(len(nodes) for _, nodes in step) for step in states.steps_of(1, 3)]
    [3, 3, 2]
    """

    def __init__(self, train: np.ndarray, rows: int, count: int, held: int, swapped: int, seed: int) -> None:
        self.train, self.rows, self.count, self.held, self.seed = train, rows, count, held, seed
        self.swapped = max(1, swapped)
        self.number = -(-(count - held) // self.swapped) + 1  # states of an iteration
        self._iteration, self._order = 0, np.empty(0, np.int64)

    def order(self, iteration: int) -> np.ndarray:
        """Return the order of the partitions in an iteration, counted from 1."""
        if iteration < self._iteration:
            self._iteration = 0
        while self._iteration < iteration:
            drawn = generator(self.seed, f"partitions {self._iteration + 1}").permutation(self.count)
            if self._iteration:
                there = np.isin(drawn, self._order[self.count - self.held :])
                drawn = np.concatenate([drawn[there], drawn[~there]])
            self._iteration, self._order = self._iteration + 1, drawn
        return self._order

    def partitions(self, iteration: int, state: int) -> np.ndarray:
        """Return the partitions that a state holds."""
        start = min(state * self.swapped, self.count - self.held)
        return self.order(iteration)[start : start + self.held]

    def nodes(self, iteration: int) -> list[np.ndarray]:
        """Return the training nodes of each state, in the order of their turns."""
        nodes = shuffled(self.train, self.seed, iteration)
        place = np.empty(self.count, np.int64)
        place[self.order(iteration)] = np.arange(self.count)
        place = place[nodes // self.rows]
        first = np.maximum(0, -(-(place - self.held + 1) // self.swapped))
        last = np.minimum(self.number - 1, place // self.swapped)
        state = generator(self.seed, f"states {iteration}").integers(first, last + 1)
        by_state = nodes[np.argsort(state, kind="stable")]
        return np.split(by_state, np.cumsum(np.bincount(state, minlength=self.number))[:-1])

    def steps_of(self, iteration: int, size: int) -> list[list[tuple[int, np.ndarray]]]:
        """Return every step's (state, training nodes) in turn: ``size`` nodes a step, fewer in the last."""
        nodes = self.nodes(iteration)
        ends = np.cumsum([len(own) for own in nodes])
        steps: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(-(-len(self.train) // size))]
        for state, (own, end) in enumerate(zip(nodes, ends)):
            first = int(end) - len(own)
            cuts = np.arange(first // size, -(-int(end) // size) + 1) * size
            for start, stop in zip(cuts[:-1].clip(first), cuts[1:].clip(max=end)):
                if start < stop:
                    steps[int(start) // size].append((state, own[start - first : stop - first]))
        return steps
