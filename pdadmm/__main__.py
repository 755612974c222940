"""``python -m pdadmm``: the same as the command ``pdadmm``."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    from pdadmm.cli import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
