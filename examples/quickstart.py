"""Train a 10-layer graph-augmented MLP on scikit-learn's digits in one process, and use the result.

The graph joins each of 1,797 handwritten digits to its ten nearest neighbours; 200 digits are labelled for
training. Nothing is downloaded. Run time: about 8 seconds.

    python examples/quickstart.py
    python examples/quickstart.py --layers 4 --iterations 10
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pdadmm import PDADMMG, digits, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on digits, predict, save, load.")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage of growth")
    given = parser.parse_args()

    graph = digits()
    print(graph)

    solver = PDADMMG(layers=given.layers, hidden=given.hidden, iterations=given.iterations).fit(graph)
    for stage in solver.stages_:
        print(
            f"{stage['layers']:2} layers after {stage['iterations']} iterations: "
            f"validation {stage['val_accuracy']:.3f}, test {stage['test_accuracy']:.3f}"
        )
    print(f"training took {solver.summary_['seconds_training']:.2f} s")

    test = graph.splits["test"]
    certainty = solver.predict_proba(graph)[test].max(axis=1)
    print(f"test accuracy {solver.score(graph):.3f}, mean certainty {certainty.mean():.3f}")

    # The network is a plain torch module on augmented features, with or without this library's solver.
    with TemporaryDirectory() as folder:
        solver.save(Path(folder) / "digits.safetensors")
        model, augmenter, _ = load_model(Path(folder) / "digits.safetensors")
    with torch.no_grad():
        logits = model(torch.from_numpy(augmenter.transform(graph)))
    agree = (logits.argmax(1).numpy() == solver.predict(graph)).mean()
    print(f"the saved model agrees on {agree:.1%} of the nodes")


if __name__ == "__main__":
    main()
