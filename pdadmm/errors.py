"""Errors a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["DivergenceError", "InputError", "Interrupted", "did_you_mean", "reason_of"]


LONGEST = 2000  # characters of one part of a message


def shortened(text: str) -> str:
    """Return ``text``, its middle left out where it is very long."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} .. {text[-half:]}"


def printable(text: str) -> str:
    """Return ``text`` on one line: a file's contents in a message must not steer a terminal.

    >>> printable("a\\nb")
    'a\\\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: BaseException) -> str:
    """Return what went wrong, on one line: the system's words for an OSError, without its number and path.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "x")), reason_of(EOFError())
    ('No such file or directory', 'EOFError')
    """
    text = getattr(error, "strerror", None) or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question after the nearest of ``known`` names, small letters as capitals; "" where none is near.

    >>> did_you_mean("Trian", ["train", "tune"]), did_you_mean("koala", ["train", "tune"])
    ('did you mean train?', '')
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f"did you mean {names[near[0]]}?" if near else ""


class InputError(ValueError):
    """A value the user gave cannot be used; the message is one sentence a user can act on.

    Parameters: ``argument`` (its name as the user wrote it), ``value`` (what was given), ``allowed``
    (what it may be, read after "must be"), ``remedy`` (what to do about it; optional).

    >>> str(InputError("layers", 0, "a whole number of at least 1"))
    'layers = 0: must be a whole number of at least 1'
    """

    def __init__(self, argument: str, value: object, allowed: str, remedy: str = "") -> None:
        self.argument, self.value, self.allowed, self.remedy = argument, value, allowed, remedy
        shown = value if isinstance(value, str) else repr(value)
        message = f"{shortened(argument)} = {shortened(shown)}: must be {shortened(allowed)}"
        super().__init__(printable(message + (f"; {shortened(remedy)}" if remedy else "")))

    def __reduce__(self):
        return type(self), (self.argument, self.value, self.allowed, self.remedy)


class DivergenceError(ArithmeticError):
    """Training produced a value that is not finite; the message says where and what to change."""


class Interrupted(KeyboardInterrupt):
    """SIGINT ended a training with checkpoints after an iteration, on all ranks alike."""
