"""R ranks on one network against R independent copies of it side by side, which is the machine's own limit.

    mpirun -n 2 python benchmarks/ranks.py --nodes 20000 --hidden 256 --trace ranks.json       (about 3 min)

Every rank first holds a whole network of its own, in one process, and all iterate at once; then rank 0 iterates its own
while the others wait ("alone"); then they hold one together. All take turns, ``repeat`` times over. R copies do R
iterations in the time of the slowest, R ranks do one: the efficiency is T_copies / (R T_ranks), the speedup is
T_alone / T_ranks. "exposed" is the share of its iterations that a rank spends on sending
and on waiting for p and q. A rank also waits where its layers are fewer or smaller than another's, so what messages
cost is the share of the rank that waits least.
"""

from __future__ import annotations

import statistics
import time

import torch
from shared import full_network, machine, random_problem, ratio, shape_parser

from pdadmm.parallel.launch import make_transport
from pdadmm.trace import NO_TRACE, Trace

COMMUNICATION = ("wait for p", "wait for q", "send p")


def spent(transport, iterate) -> float:
    """Return the seconds of one iteration, of the rank that ends last."""
    transport.barrier()
    start = time.perf_counter()
    iterate()
    return max(transport.allgather(time.perf_counter() - start))


def main() -> None:
    parser = shape_parser(__doc__, repeat=5)
    parser.add_argument("--trace", help="write the timeline of the last iterations here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transport = make_transport()
    problem = random_problem(given.nodes, given.inputs, given.classes)
    _, copy = full_network(problem, given.layers, given.hidden)
    if transport.rank:
        problem.X = None
    _, shared = full_network(problem, given.layers, given.hidden, transport)
    trace = Trace()
    trace.start(transport)
    copies, alone, ranks = [], [], []
    for _ in range(given.repeat):
        copies.append(spent(transport, copy.iterate))
        alone.append(spent(transport, (lambda: None) if transport.rank else copy.iterate))
        transport.trace = trace
        ranks.append(spent(transport, shared.iterate))
        trace.stop()
        transport.trace = NO_TRACE
    shared.finish()
    trace.collect(transport)
    if transport.rank:
        return
    R = transport.size
    print(f"V = {given.nodes}, n = {given.hidden}, L = {given.layers}, {R} ranks of one thread")
    print(machine(), "", "| what | median ms | each |", "|---|---|---|", sep="\n")
    for name, values in (("copies", copies), ("alone", alone), ("ranks", ranks)):
        each = " ".join(f"{1e3 * value:.1f}" for value in values)
        print(f"| {name} | {1e3 * statistics.median(values):.1f} | {each} |")
    efficiency = statistics.median(a / (R * b) for a, b in zip(copies, ranks, strict=True))
    print(f"\nefficiency against {R} copies: {efficiency:.3f}")
    print(f"speedup over one rank: {ratio(alone, ranks):.2f}")
    for rank, seconds in enumerate(trace.seconds()):
        waited = sum(seconds.get(name, 0.0) for name in COMMUNICATION)
        print(f"rank {rank}: exposed {waited / sum(seconds.values()):.3f} of its iterations")
    if given.trace:
        trace.write(given.trace)


if __name__ == "__main__":
    main()
