"""``pdadmm datasets``: the data sets known by name."""

from __future__ import annotations

from pdadmm.data import DATASETS

__all__ = ["run"]

COLUMNS = ("name", "nodes", "edges", "features", "classes", "split", "description")


def run(arguments: list[str]) -> int:
    """Print the registry as a table."""
    from pdadmm.cli import Parser

    Parser(prog="pdadmm datasets", description="List the data sets known by name.").parse_args(arguments)
    rows = [COLUMNS, *(tuple(str(getattr(row, name)) for name in COLUMNS) for row in DATASETS.values())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print("\nsplit: the one that comes with the data; edges are undirected.")
    print("Files are looked for in --data-dir or the folder that PDADMM_DATA names.")
    return 0
