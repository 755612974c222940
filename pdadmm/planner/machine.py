"""What the planner knows of a machine: rates that ``pdadmm plan --calibrate`` measured, kept in a file."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdadmm import __version__
from pdadmm.errors import InputError
from pdadmm.files import is_number, parse_json
from pdadmm.parallel.launch import cores

__all__ = ["Machine", "Table", "host_facts", "known_machine", "load_machine", "machine_folder", "save_machine"]

FOLDER = "PDADMM_MACHINE"  # environment variable: the folder of the machine's file
FILE = "machine.json"
FORMAT = "pdadmm-machine-1"
REMEDY = "run: pdadmm plan --calibrate"

Table = dict[int, float]  # a size -> what was measured at it


def interpolated(table: Table, size: float) -> float:
    """Return the value at ``size``, linear in log size and log value between the sizes measured, constant outside.

    >>> interpolated({1: 2.0, 100: 8.0}, 10), interpolated({1: 2.0, 100: 8.0}, 1000)
    (4.0, 8.0)
    """
    sizes = sorted(table)
    above = next((number for number, known in enumerate(sizes) if known >= size), len(sizes))
    if above in (0, len(sizes)):
        return table[sizes[min(above, len(sizes) - 1)]]
    low, high = sizes[above - 1], sizes[above]
    share = math.log(size / low) / math.log(high / low)
    return round(math.exp((1 - share) * math.log(table[low]) + share * math.log(table[high])), 15)


@dataclass(frozen=True)
class Machine:
    """Measured on one thread with one process computing: rates by size; ``slowdown`` says what company costs.

    ``product``: flop/s of a dense product by its smallest dimension; ``factor``, ``solve``: flop/s of a Cholesky
    inverse and of n right sides, by n; ``sweep``: bytes/s of element-wise updates by the bytes of one array;
    ``newton``: seconds an entry of z_L; ``code``: numbers/s of encoding, as of decoding, by bits; ``sparse``: seconds a
    non-zero and column of S h; ``mask``: seconds an entry of dropout; ``overhead``: seconds of one call besides;
    ``work``: processor seconds of a fixed piece of work, ``slowdown``: seconds of it with so many processes at it at
    once over that; ``meeting``: seconds that so many processes take for a sum, however short, waiting for those
    without a core; ``latency`` (s), ``bandwidth`` (bytes/s): of messages between two ranks of this host;
    ``read``, ``write``: bytes/s of the disk; ``process``: bytes of a process that did next to nothing.
    """

    cores: int
    product: Table
    factor: Table
    solve: Table
    sweep: Table
    newton: float
    code: Table
    sparse: float
    mask: float
    overhead: float
    work: float
    slowdown: Table
    meeting: Table
    latency: float
    bandwidth: float
    read: float
    write: float
    process: float
    facts: dict[str, str]

    def crowded(self, computing: int) -> float:
        """Return the slowdown of each of so many processes that compute at once on this host.

        Beyond what was measured cores are shared evenly.
        """
        most = max(self.slowdown)
        if computing <= most:
            return interpolated(self.slowdown, computing)
        return self.slowdown[most] * computing / max(most, self.cores)

    def seconds_meeting(self, ranks: int) -> float:
        """Return the seconds that so many ranks of a host wait for each other at an exchange, its messages left out."""
        if ranks < 2:
            return 0.0
        most = max(self.meeting)
        return interpolated(self.meeting, min(ranks, most)) * max(1.0, ranks / most)

    def seconds_product(self, *dimensions: int) -> float:
        """Return the seconds of a dense product of these three dimensions."""
        flops = 2.0 * math.prod(dimensions)
        return self.overhead + flops / interpolated(self.product, max(1, min(dimensions)))

    def seconds_inverse(self, n: int) -> float:
        """Return the seconds of a Cholesky factor and the inverse from it, n^3 operations."""
        return self.overhead + n**3 / interpolated(self.factor, n)

    def seconds_solve(self, n: int, columns: int) -> float:
        """Return the seconds of a Cholesky factor and a solve with ``columns`` right sides."""
        return self.overhead + (n**3 / 3 + 2.0 * n * n * columns) / interpolated(self.solve, n)

    def seconds_sweep(self, arrays: float, nbytes: float) -> float:
        """Return the seconds of one pass over so many arrays of ``nbytes`` bytes each."""
        return self.overhead + arrays * nbytes / interpolated(self.sweep, max(1.0, nbytes))

    def seconds_coding(self, count: int, bits: int) -> float:
        """Return the seconds of encoding so many numbers, or of decoding them."""
        return count / interpolated(self.code, max(1, bits))

    def seconds_message(self, nbytes: float) -> float:
        """Return the seconds of a message between two ranks of this host."""
        return self.latency + nbytes / self.bandwidth if nbytes else 0.0


def host_facts() -> dict[str, str]:
    """Return what must be the same for a calibration to hold: processor, cores, versions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    import torch

    return {
        "processor": names[0] if names else platform.machine(),
        "cores": str(cores()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pdadmm": __version__,
    }


def machine_folder(given: str | None = None) -> Path:
    """Return the folder of the machine's file: ``given``, what PDADMM_MACHINE names, or the user's cache."""
    named = given or os.environ.get(FOLDER)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "pdadmm"


def save_machine(machine: Machine, folder: Path) -> Path:
    """Write the machine's file and return its path; InputError where it cannot be written."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(machine)}, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise InputError("machine_dir", str(folder), "a folder that can be written", error.strerror or "") from None
    return path


def load_machine(folder: Path) -> Machine:
    """Read the machine's file; InputError where there is none or it is damaged."""
    path = folder / FILE
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError("machine_dir", str(folder), "a folder with a calibration", REMEDY) from None
    except ValueError:
        raise InputError("machine_dir", str(path), "a file that pdadmm plan --calibrate wrote", REMEDY) from None
    try:
        if values.pop("format") != FORMAT:
            raise ValueError
        fields = {field.name: _read(field.type, values[field.name]) for field in dataclasses.fields(Machine)}
    except (KeyError, ValueError, AttributeError, TypeError):
        raise InputError("machine_dir", str(path), "a file that this version wrote", REMEDY) from None
    return Machine(**fields)


def _read(kind: object, value: Any) -> Any:
    """Return one field of the file in its type; ValueError or AttributeError for anything else."""
    if kind == "Table":
        table = {int(size): entry for size, entry in value.items()}
        if not table or not all(is_number(entry) and entry > 0 for entry in table.values()) or min(table) < 1:
            raise ValueError
        return table
    if kind in ("int", "float"):
        if not is_number(value) or value <= 0:
            raise ValueError
        return value
    return {str(name): str(fact) for name, fact in value.items()}


def known_machine(folder: Path) -> Machine | None:
    """Return the calibration of this very machine and these versions, None where there is none that can be read."""
    try:
        machine = load_machine(folder)
    except InputError:
        return None
    return machine if machine.facts == host_facts() else None
