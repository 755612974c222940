"""A discrete-event simulation of pdADMM-G's schedule on a grid of ranks (pdadmm.admm.network.Network.iterate)."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pdadmm.parallel.rank_grid import RankGrid
from pdadmm.planner.job import Job, largest, placement
from pdadmm.planner.machine import Machine
from pdadmm.planner.seconds import Layer, layer_seconds
from pdadmm.planner.traffic import sums_of_layer

__all__ = ["Conditions", "Link", "Outcome", "Program", "programs", "run", "simulate"]


@dataclass(frozen=True)
class Conditions:
    """What a simulated run meets.

    ``straggler``: factor on the work of the rank in the middle; ``jitter``: deviation of the log of a factor on every
    piece of work, drawn from ``seed``; ``slow_link``: factor on the messages of the middle boundary; ``overlap``:
    whether messages between hosts travel by themselves, else while their receiver waits.
    """

    straggler: float = 1.0
    jitter: float = 0.0
    seed: int = 0
    slow_link: float = 1.0
    overlap: bool = True


@dataclass(frozen=True)
class Program:
    """What a rank does in an iteration, in seconds of work: ``first``, all that needs no q from below; wait for q;
    ``p``, with u and coding; send p down; ``moments``; sum over the shards; ``middle``, W, b, z and the q that stay on
    this rank; wait for p; ``last``, the q that leaves; send it up.

    ``down``, ``up``: seconds of a message in flight, None without a neighbour; ``shards``: seconds of the sum.
    """

    first: float
    p: float
    moments: float
    middle: float
    last: float
    down: float | None = None
    up: float | None = None
    shards: float = 0.0


@dataclass
class Outcome:
    """Seconds of each iteration, of the rank that ends last; each rank's seconds of work and of waiting in all."""

    iterations: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median iteration, the first left out where there are more."""
        later = sorted(self.iterations[1:] or self.iterations)
        middle = len(later) // 2
        return later[middle] if len(later) % 2 else 0.5 * (later[middle - 1] + later[middle])


@dataclass(frozen=True)
class Link:
    """What joins two ranks: a message of B bytes takes ``latency`` + B / ``bandwidth`` seconds."""

    latency: float
    bandwidth: float

    def seconds(self, nbytes: float) -> float:
        return self.latency + nbytes / self.bandwidth

    def ring(self, nbytes: float, ranks: int, calls: int = 1) -> float:
        """Return the seconds of a sum over a ring of ranks: 2 (N - 1) steps of 1/N of the bytes."""
        steps = 2 * (ranks - 1)
        return steps * (calls * self.latency + nbytes / ranks / self.bandwidth)


def programs(job: Job, grid: RankGrid, machine: Machine, link: Link, per_host: int) -> list[Program]:
    """Return the program of each layer group; all shards of a group run the same, that of the largest shard."""
    met = machine.seconds_meeting(min(per_host, grid.groups * grid.shards)) if grid.shards > 1 else 0.0
    V = largest(job.nodes, grid)
    known: dict[tuple, Layer] = {}
    runs = [layers for layers in placement(job, grid) if len(layers)]

    def layer(number: int) -> Layer:
        key = number in (0, job.layers - 1), number == 0, job.widths[number], job.widths[number + 1]
        if key not in known:
            known[key] = layer_seconds(job, number, V, machine)
        return known[key]

    def flight(boundary: int, kind: str) -> float:
        return link.seconds(job.message_bytes(boundary, kind, V))

    found = []
    for group, layers in enumerate(runs):
        all_, uppers = [layer(l) for l in layers], [layer(l) for l in layers if l > 0]
        below, above = group > 0, group + 1 < len(runs)
        alone = all_[:-1]  # their q stays on this rank, and so does the p that it needs
        first = sum(one.prepare_p + one.update_p + one.code_p for one in uppers)
        p = 0.0
        if below:
            bottom = uppers[0]
            p = bottom.receive_u + layer(layers.start - 1).decode_q + bottom.update_p + bottom.code_p
            first -= bottom.update_p + bottom.code_p
        middle = sum(one.solve + one.update_z for one in all_) + sum(one.update_q + one.code_q for one in alone)
        last = all_[-1].update_q + all_[-1].code_q
        if above:
            last += layer(layers.stop).decode_p
        sums = [nbytes for l in layers for nbytes in sums_of_layer(job, l)]
        ring = link.ring(sum(sums), grid.shards, len(sums)) + len(sums) * met
        found.append(
            Program(
                first, p, sum(one.moments for one in all_), middle, last,
                flight(layers.start - 1, "p") if below else None,
                flight(layers.stop - 1, "q") if above else None, ring,
            )
        )  # fmt: skip
    return found


class _Host:
    """Ranks that share cores: with k computing each goes on at 1 / crowded(k) of its own speed."""

    def __init__(self, crowded: Callable[[int], float]) -> None:
        self.crowded, self.now, self.clock, self.version = crowded, 0.0, 0.0, 0
        self.computing: list[tuple[float, int]] = []  # heap of (clock at which the work is done, rank)

    def advance(self, now: float) -> None:
        """Bring the clock, the work that each rank has got done, up to the time ``now``."""
        if self.computing:
            self.clock += (now - self.now) / self.crowded(len(self.computing))
        self.now = now

    def next_end(self) -> float:
        """Return when the next rank is done if nobody joins before."""
        return self.now + max(0.0, self.computing[0][0] - self.clock) * self.crowded(len(self.computing))


class _Run:
    """The state of a simulation; rank (g, s) has the number g N + s, and neighbours in number share a host."""

    def __init__(
        self, parts: list[Program], shards: int, hosts: list[_Host], per_host: int, conditions: Conditions
    ) -> None:
        self.parts, self.N, self.hosts, self.per_host, self.c = parts, shards, hosts, per_host, conditions
        self.R = len(parts) * shards
        self.events: list[tuple[float, int, Callable[..., None], tuple]] = []  # heap: time, order, what happens
        self.count, self.now = 0, 0.0
        self.random = random.Random(conditions.seed)
        self.outcome = Outcome([], [0.0] * self.R, [0.0] * self.R)
        self.arrived: dict[tuple[str, int, int], float] = {}  # (kind, receiver, iteration) -> time, NaN without
        self.blocked: set[tuple[str, int, int]] = set()
        self.since = [0.0] * self.R  # when a rank began to wait
        self.summing: dict[tuple[int, int], list[int]] = {}
        self.ended, self.last_end = 0, 0.0

    def run(self, iterations: int) -> Outcome:
        """Simulate so many iterations."""
        self.lives = [self._life(rank, iterations) for rank in range(self.R)]
        for rank in range(self.R):
            self._go_on(rank)
        while self.events:
            self.now, _, action, arguments = heapq.heappop(self.events)
            action(*arguments)
        return self.outcome

    def _life(self, rank: int, iterations: int) -> Iterator[None]:
        """What a rank does; every ``yield`` waits for what the line before it has arranged."""
        part, below, above = self.parts[rank // self.N], rank - self.N, rank + self.N
        for k in range(iterations):
            self._work(rank, part.first)
            yield
            if part.down is not None:
                if k:
                    self._take("q", rank, k - 1)
                    yield
                self._work(rank, part.p)
                yield
                self._send("p", below, k, rank)
            self._work(rank, part.moments)
            yield
            if self.N > 1:
                self._sum(rank, k, part.shards)
                yield
            self._work(rank, part.middle)
            yield
            if part.up is not None:
                self._take("p", rank, k)
                yield
            self._work(rank, part.last)
            yield
            if part.up is not None:
                self._send("q", above, k, rank)
            self._end()
            yield

    def _at(self, time: float, action: Callable[..., None], *arguments: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, action, arguments))

    def _go_on(self, rank: int) -> None:
        next(self.lives[rank], None)

    # Work

    def _work(self, rank: int, seconds: float) -> None:
        if rank == self.R // 2:
            seconds *= self.c.straggler
        if self.c.jitter:
            seconds *= math.exp(self.random.gauss(0.0, self.c.jitter))
        self._compute(rank, seconds)

    def _compute(self, rank: int, seconds: float) -> None:
        self.outcome.work[rank] += seconds
        host = self.hosts[rank // self.per_host]
        host.advance(self.now)
        heapq.heappush(host.computing, (host.clock + seconds, rank))
        self._expect(host)

    def _expect(self, host: _Host) -> None:
        """Arrange the host's next event; those arranged before no longer hold."""
        host.version += 1
        if host.computing:
            self._at(host.next_end(), self._done, host, host.version)

    def _done(self, host: _Host, version: int) -> None:
        if version != host.version:
            return
        host.advance(self.now)
        clock, rank = heapq.heappop(host.computing)
        host.clock = max(host.clock, clock)
        self._expect(host)
        self._go_on(rank)

    # Messages

    def _flight(self, kind: str, receiver: int) -> float:
        """Return the seconds of a message to ``receiver``."""
        group = receiver // self.N
        lower = group if kind == "p" else group - 1
        seconds = self.parts[lower].up if kind == "q" else self.parts[lower + 1].down
        assert seconds is not None
        return seconds * (self.c.slow_link if lower == (len(self.parts) - 1) // 2 else 1.0)

    def _send(self, kind: str, receiver: int, number: int, sender: int) -> None:
        """Let a message leave: between hosts it travels by itself, else the receiver copies it once it waits."""
        key = kind, receiver, number
        by_itself = self.c.overlap and sender // self.per_host != receiver // self.per_host
        self.arrived[key] = self.now + self._flight(kind, receiver) if by_itself else math.nan
        if key in self.blocked:
            self.blocked.remove(key)
            self._arrive(key)

    def _take(self, kind: str, rank: int, number: int) -> None:
        self.since[rank] = self.now
        key = kind, rank, number
        if key in self.arrived:
            self._arrive(key)
        else:
            self.blocked.add(key)

    def _arrive(self, key: tuple[str, int, int]) -> None:
        """Sender and receiver of a message are both there: the receiver goes on when it has it."""
        kind, rank, _ = key
        time = self.arrived.pop(key)
        if math.isnan(time):
            self.outcome.waited[rank] += self.now - self.since[rank]
            self._compute(rank, self._flight(kind, rank))
        else:
            self._wake(rank, max(self.now, time))

    def _wake(self, rank: int, time: float) -> None:
        self.outcome.waited[rank] += time - self.since[rank]
        self._at(time, self._go_on, rank)

    def _sum(self, rank: int, number: int, seconds: float) -> None:
        """Sum over the shards of a group: all leave when the last has come and the ring has gone round."""
        self.since[rank] = self.now
        key = rank // self.N, number
        members = self.summing.setdefault(key, [])
        members.append(rank)
        if len(members) == self.N:
            for member in self.summing.pop(key):
                self._wake(member, self.now + seconds)

    def _end(self) -> None:
        """End an iteration together, as training does, which measures after each: q is there when the next begins."""
        self.ended += 1
        if self.ended == self.R:
            self.ended = 0
            self.outcome.iterations.append(self.now - self.last_end)
            self.last_end = self.now
            for member in range(self.R):
                self._at(self.now, self._go_on, member)


def run(
    parts: list[Program], shards: int, crowded: Callable[[int], float], per_host: int, iterations: int,
    conditions: Conditions = Conditions(),
) -> Outcome:  # fmt: skip
    """Simulate ``iterations`` of ranks with these programs, ``per_host`` of them on each host.

    >>> run([Program(0.0, 0.0, 1.0, 2.0, 1.0)], 1, lambda computing: 1.0, 1, 2).iterations
    [4.0, 4.0]
    """
    count = -(-len(parts) * shards // per_host)
    return _Run(parts, shards, [_Host(crowded) for _ in range(count)], per_host, conditions).run(iterations)


def simulate(
    job: Job, grid: RankGrid, machine: Machine, per_host: int, link: Link, iterations: int = 5,
    conditions: Conditions = Conditions(),
) -> Outcome:  # fmt: skip
    """Simulate a training on hosts like ``machine``, ``per_host`` ranks on each; ``link`` joins the ranks.

    The seconds are those that training counts: objective, residuals and evaluation are not in them.
    """
    parts = programs(job, grid, machine, link, per_host)
    return run(parts, grid.shards, machine.crowded, per_host, iterations, conditions)
