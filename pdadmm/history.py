"""What a run records: a list of dicts, one an iteration, with JSON lines in and out, and a CSV table out."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdadmm.errors import InputError, reason_of
from pdadmm.files import parse_json, regular_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["QUANTITIES", "History", "bytes_of_iteration"]

# What a row of some solver's has (docs/cli.md, Keys of the history).
QUANTITIES = (
    "iteration", "stage", "layers", "seconds", "bytes", "objective", "train_accuracy", "val_accuracy", "test_accuracy",
    "val_loss", "lagrangian", "risk", "residual_link", "residual_linear", "residual_activation", "q_squared", "rho",
)  # fmt: skip


def bytes_of_iteration(solver: str, sent: Sequence[float]) -> float:
    """Return what all ranks sent in the last iteration, ``sent`` up to the end of each; of GIST, whose rounds span
    several, the mean of all.

    >>> bytes_of_iteration("gcn", [10, 30]), bytes_of_iteration("gist", [10, 30])
    (20, 15.0)
    """
    if solver == "gist":
        return sent[-1] / len(sent)
    return sent[-1] - (sent[-2] if len(sent) > 1 else 0)


class History(list):
    """A list of dicts, one an iteration; ``column`` picks one quantity, ``plot`` draws them.

    >>> history = History([{"iteration": 1, "objective": 3.0}, {"iteration": 2, "objective": 2.5}])
    >>> history.column("objective")
    [3.0, 2.5]
    """

    def column(self, name: str) -> list[Any]:
        """Return one quantity of every iteration, None where an iteration has none; InputError for no such quantity."""
        if self and name not in QUANTITIES and not any(name in row for row in self):
            raise InputError("name", name, "one of " + ", ".join(dict.fromkeys(key for row in self for key in row)))
        return [row.get(name) for row in self]

    def plot(self, path: str | os.PathLike | None = None, x: str = "iteration", name: str = "run") -> Figure:
        """Return a matplotlib figure of objective, residuals and accuracy over ``x``, and save it to ``path``.

        As plot_convergence, which draws several runs: ``x`` is "iteration", "seconds" or "bytes". Raises InputError.

        >>> figure = solver.history_.plot("run.png")  # doctest: +SKIP
        """
        from pdadmm.plot import plot_convergence

        return plot_convergence({name: self}, path, x)

    def to_jsonl(self, path: str | os.PathLike) -> None:
        """Write one JSON object a line."""
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in self), encoding="utf-8")

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write a table with a column for each quantity, empty where an iteration has none."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in self for key in row)))
            writer.writeheader()
            writer.writerows(self)

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike) -> History:
        """Read what ``to_jsonl`` wrote; InputError names the first line that is not a JSON object."""
        try:
            lines = regular_file(path).read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise InputError("history", str(path), "a readable file of JSON lines", reason_of(error)) from None
        return cls(cls._parse(str(path), lines))

    @staticmethod
    def _parse(path: str, lines: list[str]) -> Iterable[dict[str, Any]]:
        if lines[-1] == "":
            lines = lines[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json(line)
            except ValueError:
                raise InputError(
                    "history", path, "a file with one JSON object a line", f"line {number} is not one"
                ) from None
            yield row
