"""What messages of fewer bits cost and save: one network with 32, 8, 4, 2 and 1 bits a number (the paper's Fig. 5).

Each row is pdADMM-G-Q with the messages p and q in so many bits, beside pdADMM-G, which sends 32; "0" sends
nothing after the start of a stage, the control that shows what messages are worth. One process counts the same
bytes as one rank a layer would send. Run time: about 20 seconds.

    python examples/quantized.py
    python examples/quantized.py --dataset cora --seeds 5          (PDADMM_DATA names the folder of its file)
"""

from __future__ import annotations

import argparse
import statistics

from pdadmm import PDADMMG, PDADMMGQ, load_dataset
from pdadmm.console import human_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy and bytes by bits of the messages.")
    parser.add_argument("--dataset", default="digits", help="a name of `pdadmm datasets` or a FILE.npz with a split")
    parser.add_argument("--bits", default="32,8,4,2,1,0", help="widths to try")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage of growth")
    given = parser.parse_args()

    graph = load_dataset(given.dataset)
    sizes = {"layers": given.layers, "hidden": given.hidden, "iterations": given.iterations}
    print("bits  test accuracy  bytes an iteration  less by")
    whole = None
    for bits in map(int, given.bits.split(",")):
        make = PDADMMG if bits == 32 else lambda bits=bits, **more: PDADMMGQ(bits=bits, **more)
        runs = [make(seed=seed, **sizes).fit(graph).summary_ for seed in range(given.seeds)]
        accuracy = statistics.mean(run["test_accuracy"] for run in runs)
        sent = runs[0]["bytes_per_iteration"]
        whole = sent if whole is None else whole
        less = f"{whole / sent:6.1f}x" if sent else "     -"
        print(f"{bits:4}  {accuracy:13.4f}  {human_bytes(sent):>18}  {less}")


if __name__ == "__main__":
    main()
