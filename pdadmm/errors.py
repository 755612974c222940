"""Errors a user can act on."""

from __future__ import annotations

__all__ = ["DivergenceError", "InputError", "Interrupted"]


class InputError(ValueError):
    """A value the user gave cannot be used; the message is one sentence a user can act on.

    Parameters: ``argument`` (its name as the user wrote it), ``value`` (what was given), ``allowed``
    (what it may be, read after "must be"), ``remedy`` (what to do about it; optional).

    >>> str(InputError("layers", 0, "a whole number of at least 1"))
    "layers = 0: must be a whole number of at least 1"
    """

    def __init__(self, argument: str, value: object, allowed: str, remedy: str = "") -> None:
        self.argument, self.value, self.allowed, self.remedy = argument, value, allowed, remedy
        shown = value if isinstance(value, str) else repr(value)
        super().__init__(f"{argument} = {shown}: must be {allowed}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self):
        return type(self), (self.argument, self.value, self.allowed, self.remedy)


class DivergenceError(ArithmeticError):
    """Training produced a value that is not finite; the message says where and what to change."""


class Interrupted(KeyboardInterrupt):
    """SIGINT ended a training with checkpoints after an iteration, on all ranks alike."""
