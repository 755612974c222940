"""``--config FILE.toml``: the flags of a command from a file; those of the command line come after them and win."""

from __future__ import annotations

import argparse
import logging
import tomllib
from collections.abc import Mapping
from typing import Any

from pdadmm.cli.common import early_flags
from pdadmm.cli.parser import Parser
from pdadmm.errors import InputError, did_you_mean, reason_of
from pdadmm.files import file_within, regular_file
from pdadmm.versions import versions

__all__ = ["Config"]

log = logging.getLogger("pdadmm")

VERSIONS = "versions"  # the table that says what wrote the file
EARLY = ("solver", "bits", "preset")  # flags that decide which others there are
EXCLUDED = ("config", "help")


class Config:
    """What the file behind --config says; without that flag it says nothing.

    ``values``: flag (without its hyphens) -> value; ``written_by``: the versions that wrote the file. Raises
    InputError for a file that cannot be read or is not TOML.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        self.arguments = arguments
        self.path = early_flags(command, arguments, "config").config
        self.values: dict[str, Any] = {}
        self.written_by: dict[str, Any] = {}
        if self.path is None:
            return
        try:
            self.values = tomllib.loads(regular_file(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            remedy = file_within(self.path, "config.toml") or reason_of(error)
            raise InputError("config", self.path, "a readable TOML file", remedy) from None
        table = self.values.pop(VERSIONS, {})
        if not isinstance(table, dict):
            raise InputError("config", f"{self.path}, {VERSIONS}", "a table")
        self.written_by = table

    def early(self) -> list[str]:
        """Return words of the flags that decide which others there are, before those of the command line."""
        return [f"--{name}={self.values[name]}" for name in EARLY if name in self.values] + self.arguments

    def words(self, parser: Parser) -> list[str]:
        """Return all words to parse: the file's, then the command line's, so that these win.

        Raises InputError for a key that is not a flag of ``parser``, with the nearest one, and for a value of a
        kind that no flag has.
        """
        known = {
            name.removeprefix("--"): action
            for action in parser._actions
            for name in action.option_strings
            if name.startswith("--") and name not in [f"--{one}" for one in EXCLUDED]
        }
        words = []
        for key, value in self.values.items():
            if key not in known:
                of_others = parser.of_others(f"--{key}")
                if of_others is not None:
                    raise InputError("config", f"{self.path}, key {key}", *of_others)
                remedy = did_you_mean(key.replace("_", "-"), known) or f"{parser.prog} --help lists them"
                raise InputError("config", f"{self.path}, key {key}", "a flag without its hyphens", remedy)
            words += self._word(key, value, known[key])
        return words + self.arguments

    def _word(self, key: str, value: Any, action: argparse.Action) -> list[str]:
        if action.nargs == 0 or (action.nargs == "?" and isinstance(value, bool)):
            if not isinstance(value, bool):
                raise InputError("config", f"{self.path}, {key} = {value!r}", "true or false there")
            return [f"--{key}"] if value else []
        return [f"--{key}={self._text(key, value)}"]

    def _text(self, key: str, value: Any) -> str:
        """Return a value as one types it."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, (str, int, float)):
            return str(value)
        if isinstance(value, list) and value and all(type(part) in (str, int, float) for part in value):
            return ",".join(map(str, value))
        raise InputError("config", f"{self.path}, {key} = {value!r}", "a text, a number, true, false or a list there")

    def check_preset(self, changed: Mapping[str, Any]) -> None:
        """Raise InputError where the command line names a preset whose values the file would hide.

        ``changed``: the parameters that the preset sets.
        """
        named = early_flags("train", self.arguments, "preset").preset
        if named is None or named == self.values.get("preset", "default"):
            return
        hidden = [key for key in self.values if key.replace("-", "_").lower() in {name.lower() for name in changed}]
        if hidden:
            remedy = f"the file says {hidden[0]}, too: take such keys out of it, or give flags of their own"
            raise InputError("preset", named, f"left out with --config {self.path}", remedy)

    def tell_versions(self) -> None:
        """Log where the file was written by other versions than those that run now."""
        now, then = versions(), self.written_by
        other = [f"{name} {then[name]}, now {now[name]}" for name in now if then.get(name, now[name]) != now[name]]
        if other:
            log.info("%s was written by %s: the last bits may differ", self.path, "; ".join(other))
