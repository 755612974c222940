"""Speed of the message codec: encode and decode of a difference, C kernels against plain torch and against a copy.

    python benchmarks/codec.py --nodes 20000 --width 256 --repeat 7          (about 20 s)

GB/s count the array once (nodes * width * 4 bytes), for the copy too, so that the columns compare. Encoding reads
the array and the reference twice and writes the reference; decoding reads and writes the reference.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time

import torch

from pdadmm.kernels import cpu
from pdadmm.quantize import BITS, make_coder


def seconds(call, repeat: int) -> list[float]:
    """Wall time of each of ``repeat`` calls, after two that warm up."""
    call(), call()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def measure(x: torch.Tensor, bits: int, mode: str, repeat: int) -> tuple[list[float], list[float]]:
    """Times of encode and of decode."""
    sender, receiver = make_coder(bits, mode), make_coder(bits, mode)
    sender.start(torch.zeros_like(x))
    receiver.start(torch.zeros_like(x))
    buffer = sender.encode(x).clone()
    arrays = itertools.cycle((-x, x))  # a difference of the same size every time
    return seconds(lambda: sender.encode(next(arrays)), repeat), seconds(lambda: receiver.decode(buffer), repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--mode", choices=("difference", "value"), default="difference")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(args.nodes, args.width, generator=torch.Generator().manual_seed(0))
    y = torch.empty_like(x)
    size = x.numel() * 4 / 1e9
    print(f"python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores, 1 thread, "
          f"V = {args.nodes}, n = {args.width}, float32, {args.mode}; C kernels: {cpu.available()}")
    print("GB/s: median (all repeats)\n")
    print("| what | path | encode | decode | copy |\n|---|---|---|---|---|")

    def cell(times: list[float]) -> str:
        rates = [size / t for t in times]
        return f"{size / statistics.median(times):.2f} ({' '.join(f'{r:.2f}' for r in rates)})"

    library = cpu._library
    for bits in reversed(BITS):
        for path, handle in (("C", library), ("torch", None)):
            if path == "C" and library is None:
                continue
            cpu._library = handle
            encode, decode = measure(x, bits, args.mode, args.repeat)
            copy = seconds(lambda: y.copy_(x), args.repeat)  # beside each row: a shared machine changes its speed
            print(f"| {bits} bits | {path} | {cell(encode)} | {cell(decode)} | {cell(copy)} |", flush=True)
        cpu._library = library


if __name__ == "__main__":
    main()
