"""A small process beside the ranks of a host that reports the first of them to die, whatever killed it.

The launcher ends the others within moments, before any of them could say a word; it names a process, not what that
process was doing. This file is also what the guard itself runs, so it imports nothing of the package at its top.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["Guard"]

ROOM = 512  # bytes of a status file: written in one piece
LEFT = b"left"


class Guard:
    """Keeps a status file for this rank under ``folder`` and, on each host, one process that watches its ranks.

    A context manager, collective as it is entered. One process alone has no guard: there its shell says it died.
    """

    def __init__(self, folder: Path, transport: Any) -> None:
        self.folder, self.transport = folder / "ranks", transport
        self.process: subprocess.Popen | None = None
        self.status = self.folder / f"rank-{transport.rank:04d}.json"

    def __enter__(self) -> Guard:
        if self.transport.size == 1:
            return self
        if self.transport.rank == 0:
            self.folder.mkdir(exist_ok=True)
            for old in self.folder.iterdir():
                old.unlink(missing_ok=True)
        own = socket.gethostname(), os.getpid()
        ranks = self.transport.allgather(own)
        self.file = os.open(self.status, os.O_WRONLY | os.O_CREAT, 0o644)
        self.beat(0, "nothing yet")
        here = {rank: pid for rank, (host, pid) in enumerate(ranks) if host == own[0]}
        self.transport.barrier()
        if self.transport.rank == min(here) and hasattr(os, "pidfd_open"):
            command = [sys.executable, "-I", "-S", __file__, str(self.folder)]
            command += [f"{rank}:{pid}" for rank, pid in here.items()]
            # a session of its own: what ends the ranks must not end it
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        return self

    def beat(self, iteration: int, holds: str) -> None:
        """Write down which iteration this rank begins and what it holds."""
        if self.transport.size > 1:
            told = {"host": socket.gethostname(), "iteration": iteration, "holds": holds}
            with contextlib.suppress(OSError):  # a full disk ends no run
                os.pwrite(self.file, json.dumps(told).ljust(ROOM).encode(), 0)

    def __exit__(self, *_: object) -> None:
        if self.transport.size == 1:
            return
        os.close(self.file)
        self.status.unlink(missing_ok=True)  # who has none left in good order
        if self.process is not None:
            self.process.communicate(LEFT)


def sentence(folder: Path, rank: int, pid: int) -> str | None:
    """Return what is to be said of a rank that died, None where it had left before."""
    try:
        told = json.loads((folder / f"rank-{rank:04d}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    saved = sorted(path.name for path in folder.parent.glob("iteration-*") if path.suffix != ".partial")
    from_there = f"resume (--resume) goes on from {saved[-1]}" if saved else "there is no checkpoint yet"
    where = f"in iteration {told['iteration']}" if told["iteration"] else "before its first iteration"
    return f"rank {rank} (process {pid} on {told['host']}, with {told['holds']}) died {where}; {from_there}"


def watch(folder: Path, pids: dict[int, int]) -> None:
    """Wait until the first of these processes dies without having left, and say so; or until told to leave."""
    events, ranks = select.epoll(), {}
    events.register(0, select.EPOLLIN)
    for rank, pid in pids.items():
        try:
            file = os.pidfd_open(pid)
        except ProcessLookupError:  # dead already
            _say(folder, sentence(folder, rank, pid))
            continue
        ranks[file] = rank
        events.register(file, select.EPOLLIN)
    while ranks:
        (file, _), *_ = events.poll(maxevents=1)  # in the order of the deaths
        events.unregister(file)
        if file != 0:
            rank = ranks.pop(file)
            _say(folder, sentence(folder, rank, pids[rank]))
        elif os.read(0, len(LEFT)) == LEFT:
            return


def _say(folder: Path, said: str | None) -> None:
    """Print the sentence about the first death; those that follow, on any host, are the launcher's doing."""
    if said is None:
        return
    try:
        with open(folder / "died.txt", "x", encoding="utf-8") as file:
            file.write(said + "\n")
    except FileExistsError:
        return
    except OSError:  # a full disk must not silence it
        pass
    os.write(2, f"pdadmm: {said}\n".encode())


if __name__ == "__main__":
    watch(Path(sys.argv[1]), {int(rank): int(pid) for rank, _, pid in (word.partition(":") for word in sys.argv[2:])})
