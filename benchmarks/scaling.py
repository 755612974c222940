"""How the time of an iteration grows with the nodes V, the width n and the depth L.

    python benchmarks/scaling.py --repeat 5          (about 3 min)

One size at a time is doubled from the middle of the table, one process, one thread. The slope is that of log seconds
over log size: 1 is linear. In n the products alone grow with n^2, so a slope up to 2 is expected there.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from shared import full_network, machine, random_problem, timed

SIZES = {"V": (2500, 5000, 10000, 20000), "n": (64, 128, 256, 512), "L": (5, 10, 20, 40)}
MIDDLE = {"V": 5000, "n": 128, "L": 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="factor on every V: less than 1 for a short run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), "", "| | size | median ms | each |", "|---|---|---|---|", sep="\n")
    slopes = {}
    for name, sizes in SIZES.items():
        networks = {}
        for size in sizes:
            shape = {**MIDDLE, name: size}
            problem = random_problem(int(given.share * shape["V"]), 128, 10)
            _, networks[str(size)] = full_network(problem, shape["L"], shape["n"], warm=1)
        seconds = timed({size: network.iterate for size, network in networks.items()}, given.repeat)
        for size, values in seconds.items():
            each = " ".join(f"{1e3 * value:.2f}" for value in values)
            print(f"| {name} | {size} | {1e3 * statistics.median(values):.2f} | {each} |", flush=True)
        middles = [statistics.median(values) for values in seconds.values()]
        slopes[name] = np.polyfit(np.log(sizes), np.log(middles), 1)[0]
    print()
    for name, slope in slopes.items():
        print(f"{name}: slope {slope:.2f}")


if __name__ == "__main__":
    main()
