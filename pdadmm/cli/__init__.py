"""The command line: one module a command, one row each in COMMANDS."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from dataclasses import dataclass

import pdadmm
from pdadmm import console
from pdadmm.cli.parser import Parser
from pdadmm.errors import DivergenceError, InputError, Interrupted, did_you_mean
from pdadmm.parallel.launch import launched_rank

__all__ = ["COMMANDS", "Parser", "main"]


@dataclass(frozen=True)
class Command:
    """One row: the name, the module with ``run(arguments) -> status``, and a line of help."""

    name: str
    module: str
    help: str


COMMANDS = {
    row.name: row
    for row in (
        Command("train", "pdadmm.cli.train", "train a network on a graph and report its accuracy"),
        Command("predict", "pdadmm.cli.predict", "predict the class of every node by a trained model"),
        Command("tune", "pdadmm.cli.tune", "search a solver's settings by validation accuracy"),
        Command("compare", "pdadmm.cli.compare", "a contest between solvers, each tuned with the same budget"),
        Command("convert", "pdadmm.cli.convert", "make a graph on disk from lists of edges of any size"),
        Command("augment", "pdadmm.cli.augment", "augment a graph on disk within a limit of memory"),
        Command("plan", "pdadmm.cli.plan", "predict memory, bytes and seconds of a training, and how to spread it"),
        Command("plot", "pdadmm.cli.plot", "draw what train --history or compare --summary wrote"),
        Command("report", "pdadmm.cli.report", "write one page about a run folder of train --run"),
        Command("datasets", "pdadmm.cli.datasets", "list the data sets known by name, or download some"),
        Command("doctor", "pdadmm.cli.doctor", "say what is installed and test that it works"),
    )
}


# What RuntimeErrors of torch, CUDA's libraries and CuPy say where memory does not suffice.
NO_MEMORY = (
    "can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns 0; after one sentence 2 for bad input or too little memory, 1 where training diverges, 130 after SIGINT;
    141 where nobody reads the output any more.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = _dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except InputError as error:
        return _complain(error, 2)
    except DivergenceError as error:
        return _complain(error, 1)
    except MemoryError as error:
        return _out_of_memory(error)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        return _out_of_memory(error)
    except Interrupted:  # it has been said
        return 130
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:  # whoever read what is printed has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # and nothing is left to flush at the end
        return 141
    finally:
        console.stop_logging()


def _complain(error: Exception | str, status: int) -> int:
    if launched_rank() == 0:
        console.complain(str(error))
    return status


def _interrupted() -> int:
    """Say that Ctrl-C was heard and end the other ranks, too, which may wait for this one."""
    _complain("stopped by SIGINT (Ctrl-C)", 130)
    return _end_all(130)


def _out_of_memory(error: Exception) -> int:
    """Say that memory did not suffice, on whichever rank it was, and end the others, which may wait for it."""
    asked = re.search(r"allocate (?:memory: you tried to allocate )?([\d.]+ ?\w+)", str(error))
    value = f"{asked[1]} in one piece" if asked is not None else "used up"
    of_gpu = re.search(r"(GPU \d+) has a total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", str(error))
    where = "this machine has" if of_gpu is None else f"{of_gpu[1]} has, {of_gpu[3]} free of {of_gpu[2]}"
    remedy = "a smaller network, fewer hops, or more ranks take less; pdadmm plan foretells the memory of a training"
    if "CUDA" in str(error).upper() or "CUSOLVER" in str(error) or "CUBLAS" in str(error):
        remedy = "a smaller network, or more ranks with a GPU each, take less; --device cpu has main memory"
    console.complain(str(InputError("memory", value, f"within what {where}", remedy)))
    return _end_all(2)


def _end_all(status: int) -> int:
    if "pdadmm.parallel.mpi" in sys.modules:
        sys.modules["pdadmm.parallel.mpi"].abort(status)
    return status


def _dispatch(arguments: list[str]) -> int:
    lines = "\n".join(f"  {row.name:10} {row.help}" for row in COMMANDS.values())
    parser = Parser(
        prog="pdadmm",
        description="Graph-augmented MLPs trained by pdADMM-G, alone or under mpirun.",
        epilog=f"commands:\n{lines}\n\npdadmm COMMAND --help shows a command's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="pdadmm COMMAND [flags]",
    )
    parser.add_argument("--version", action="version", version=f"pdadmm {pdadmm.__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        raise InputError("command", arguments[0], "one of " + ", ".join(COMMANDS))
    command = parser.parse_args(arguments[:1]).command
    if command not in COMMANDS:
        raise InputError("command", command, "one of " + ", ".join(COMMANDS), did_you_mean(command, COMMANDS))
    return importlib.import_module(COMMANDS[command].module).run(arguments[1:])
