"""What the header of a message costs: writing and checking it, beside copying the message and hashing it.

    python benchmarks/headers.py          (seconds)

Microseconds of processor time, the least of many repeats, for p of Cora (140 x 100) and Amazon Computers (8,251 x 100).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pdadmm.admm.channel import Channel
from pdadmm.parallel.transport import LocalTransport
from pdadmm.quantize import digest


class Loop(LocalTransport):
    """A transport whose messages never leave."""

    def sender(self, buffer, peer, tag, kind):
        return None

    receiver = sender


def microseconds(work: Callable[[], object], repeat: int = 30, inner: int = 200) -> float:
    """Return the least processor time of one call."""
    least = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        for _ in range(inner):
            work()
        least = min(least, (time.process_time() - start) / inner)
    return 1e6 * least


def main() -> None:
    torch.set_num_threads(1)
    print("| message | write | check | copy of the message | hash (PDADMM_CHECKSUMS=1) |\n|---|---|---|---|---|")
    for rows, columns in ((140, 100), (8251, 100)):
        channel = Channel(torch.rand(rows, columns), "p", 0, None, ())
        channel.connect(Loop(), 0, sends=True, u=torch.zeros(rows, columns))
        channel.number = 1
        other = torch.empty_like(channel.value)
        times = [
            microseconds(lambda channel=channel: channel._write_header(channel.packet.header, 0)),
            microseconds(lambda channel=channel: channel._read_header(channel.packet.header)),
            microseconds(lambda channel=channel, other=other: other.copy_(channel.value), inner=20),
            microseconds(lambda channel=channel: digest(channel.value), inner=20),
        ]
        print(f"| {rows:,} x {columns} | {' | '.join(f'{t:.2f}' for t in times)} |")
    print(f"\nmicroseconds; torch {torch.__version__}")


if __name__ == "__main__":
    main()
