"""The parser of every command: argparse, its complaints turned into the sentences of InputError."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from typing import Any

from pdadmm.errors import InputError
from pdadmm.parallel.launch import launched_rank

__all__ = ["Parser"]


class WholeNames(argparse.HelpFormatter):
    """Help whose lines do not end within a name such as hop-std."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are InputErrors, so that every rank ends alike.

    ``solver``: the one whose flags it has, where a command's flags depend on that.
    """

    def __init__(self, solver: str | None = None, **kwargs) -> None:
        kwargs.setdefault("formatter_class", WholeNames)
        super().__init__(allow_abbrev=False, **kwargs)
        self.solver = solver

    def _print_message(self, message, file=None):
        """Print help or version; under mpirun on rank 0 alone."""
        if launched_rank() == 0:
            super()._print_message(message, file)

    def parse_args(self, args=None, namespace=None):
        """Parse all words; a flag that is unknown is told before one that is missing, which it may stand for."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words[: words.index("--")] if "--" in words else words:
            flag = word.partition("=")[0]
            if word.startswith("--") and flag not in self._option_string_actions:
                raise self._unknown(flag)
        given, rest = self.parse_known_args(words, namespace)
        if rest:
            raise self._unknown(rest[0])
        return given

    def error(self, message: str):
        """Raise the InputError for what argparse says."""
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        if missing is not None:
            names = missing[1].split(", ")
            forms = " ".join(self._form(name) for name in names)
            plain = ", ".join(name.rpartition("--")[2].replace("-", "_") for name in names)
            raise InputError(plain, "nothing", f"given, as {forms}", f"{self.prog} --help says what it is")
        bare = re.fullmatch(r"argument (\S+): expected (.*) arguments?", message)
        if bare is not None:
            name = bare[1].rpartition("/")[2]
            value = "too few values" if bare[2].isdigit() else "nothing"
            raise InputError(name.removeprefix("--").replace("-", "_"), value, f"given as {self._form(name)}")
        raise InputError(self.prog, message, "called as --help shows")

    def _form(self, name: str) -> str:
        """Return how a flag is written, or the name of an argument that has none."""
        action = self._option_string_actions.get(name.rpartition("/")[2])
        if action is None:
            return name
        values = action.metavar if isinstance(action.metavar, tuple) else (action.metavar or "",)
        return " ".join([action.option_strings[-1], *values]).strip()

    def _unknown(self, word: str) -> InputError:
        remedy = f"{self.prog} --help lists them"
        if not word.startswith("-"):
            if "--dataset" in self._option_string_actions:
                remedy = f"a graph is named by --dataset {word}"
            return InputError("argument", word, f"a flag of {self.prog}", remedy)
        of_others = self.of_others(word)
        if of_others is not None:
            return InputError("flag", word, *of_others)
        names = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(word.lstrip("-"), names, n=1, cutoff=0.65)
        return InputError("flag", word, f"a flag of {self.prog}", f"did you mean --{near[0]}?" if near else remedy)

    def of_others(self, flag: str) -> tuple[str, str] | None:
        """Return what to say, allowed and remedy, of a flag that only other solvers have; None for any other word."""
        owners = self._owners(flag)
        if not owners:
            return None
        return f"a flag of {self.prog} with --solver {self.solver}", f"it is of {', '.join(owners)}"

    def _owners(self, flag: str) -> list[str]:
        """Return the solvers that have a flag which this parser's has not."""
        if self.solver is None:
            return []
        from pdadmm.cli.common import flags
        from pdadmm.solvers import SOLVERS, solver_class

        found = []
        for name in SOLVERS:
            solver: Any = solver_class(name)
            own = {"--" + field.name.lower().replace("_", "-") for field in flags(solver)}
            own |= {"--preset"} if hasattr(solver, "preset") and self.prog == "pdadmm train" else set()
            own |= {"--memory", "--scratch"} if solver.streams and self.prog == "pdadmm train" else set()
            found += [name] if flag in own else []
        return found
