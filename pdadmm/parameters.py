"""Hyper-parameters as dataclass fields: one definition serves constructor, validation, command line, docs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pdadmm.errors import InputError

__all__ = [
    "Check",
    "below_one",
    "boolean",
    "check_stages",
    "closed_fraction",
    "fraction",
    "instance_of",
    "memory_size",
    "non_negative",
    "number",
    "one_of",
    "optional",
    "param",
    "parameters",
    "positive",
    "refuse_idle",
    "stage_list",
    "validate",
    "whole",
    "whole_of",
]


@dataclasses.dataclass(frozen=True)
class Check:
    """What a value may be: ``accept`` converts and returns it or raises ValueError or TypeError.

    ``numeric``: text stands for it on the command line alone.
    """

    accept: Any
    allowed: str
    metavar: str = "X"
    choices: tuple[str, ...] | None = None
    flag: bool = True
    numeric: bool = False


def whole(minimum: int, maximum: int | None = None) -> Check:
    """A whole number of at least ``minimum``, and at most ``maximum`` where given."""

    def accept(value: Any) -> int:
        number = int(value)
        exact = isinstance(value, str) or number == value
        if isinstance(value, bool) or not exact or number < minimum or (maximum is not None and number > maximum):
            raise ValueError
        return number

    allowed = f"a whole number of at least {minimum}" + (f" and at most {maximum}" if maximum is not None else "")
    return Check(accept, allowed, "N", numeric=True)


def _number(low: float, high: float, low_open: bool, allowed: str, high_open: bool = False) -> Check:
    def accept(value: Any) -> float:
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number) or number < low or number > high:
            raise ValueError
        if (low_open and number == low) or (high_open and number == high):
            raise ValueError
        return number

    return Check(accept, allowed, numeric=True)


def whole_of(numbers: Sequence[int]) -> Check:
    """One of a few whole numbers."""

    def accept(value: Any) -> int:
        number = int(value)
        if isinstance(value, bool) or number != float(value) or number not in numbers:
            raise ValueError
        return number

    return Check(accept, "one of " + ", ".join(map(str, numbers)), "N", numeric=True)


def _accept_boolean(value: Any) -> bool:
    names = {"true": True, "false": False, "yes": True, "no": False}
    return value if isinstance(value, bool) else names[str(value).lower()]


boolean = Check(_accept_boolean, "true or false", "BOOL")
# float32 holds 3e38: a weight and a sum of squares must both fit
LEAST, MOST = 1e-20, 1e20
number = _number(-MOST, MOST, False, "a number from -1e20 to 1e20")
positive = _number(LEAST, MOST, False, "a number from 1e-20 to 1e20")
non_negative = _number(0.0, MOST, False, "a number from 0 to 1e20")
fraction = _number(0.0, 1.0, True, "a number above 0 and at most 1")
closed_fraction = _number(0.0, 1.0, False, "a number from 0 to 1")
below_one = _number(0.0, 1.0, False, "a number of at least 0 and below 1", high_open=True)


def one_of(names: Collection[str]) -> Check:
    """One of the names of a family's table; where it is the table itself, rows that a user adds later count, too."""

    def accept(value: Any) -> str:
        if value not in names:
            raise ValueError
        return value

    return Check(accept, "one of " + ", ".join(names), "NAME", tuple(names))


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return dataclasses.replace(
        check,
        accept=lambda value: None if value is None else check.accept(value),
        allowed=check.allowed + ", or None",
    )


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _accept_size(value: Any) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([a-z]*)", str(value).strip().lower(), re.ASCII)
    size = int(float(match[1]) * _UNITS[match[2]]) if match is not None else 0
    if isinstance(value, bool) or size < 1:
        raise ValueError
    return size


memory_size = Check(_accept_size, "a size such as 2GiB, 512MiB or a number of bytes", "SIZE")


def _accept_stages(value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    stages = tuple(whole(1).accept(part) for part in parts)
    if not stages or any(later <= earlier for earlier, later in itertools.pairwise(stages)):
        raise ValueError
    return stages


stage_list = Check(_accept_stages, "depths in rising order such as 2,5,10", "L,L,..")


def check_stages(stages: Sequence[int], layers: int) -> None:
    """Raise InputError for depths that do not lead to ``layers``."""
    if stages[-1] != layers:
        raise InputError("stages", ",".join(map(str, stages)), f"a list that ends at layers = {layers}")
    if stages[0] < 2 <= layers:
        raise InputError("stages", ",".join(map(str, stages)), "a list that starts at 2 or more layers")


def instance_of(kind: type) -> Check:
    """An object of a class; such a parameter has no flag on the command line."""

    def accept(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Check(accept, f"a {kind.__name__}", flag=False)


def param(default: Any, check: Check, help: str, where: Mapping[str, Sequence[Any]] | None = None) -> Any:
    """Declare a hyper-parameter: its default, what it may be, and one line of help.

    ``where``: the other hyper-parameter's values with which it plays a part; with others it must keep its default.
    """
    return dataclasses.field(default=default, metadata={"check": check, "help": help, "where": where or {}})


def parameters(cls: type) -> list[dataclasses.Field]:
    """Return the hyper-parameters of a dataclass in the order of its constructor."""
    return [field for field in dataclasses.fields(cls) if "check" in field.metadata]


def validate(holder: Any) -> dict[str, Any]:
    """Return every hyper-parameter of ``holder`` converted to its type; InputError names the first bad one.

    One that plays no part beside the others, and is not its default, is refused as well.
    """
    values: dict[str, Any] = {}
    for field in parameters(type(holder)):
        value = getattr(holder, field.name)
        check = field.metadata["check"]
        if check.numeric and isinstance(value, str):
            raise InputError(field.name, repr(value), check.allowed, "write it without quotes")
        try:
            values[field.name] = check.accept(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            raise InputError(field.name, value, check.allowed) from None
    refuse_idle(parameters(type(holder)), values)
    return values


def refuse_idle(fields: Sequence[dataclasses.Field], values: Mapping[str, Any]) -> None:
    """Raise InputError for a value that is not the default and plays no part beside the others."""
    for field in fields:
        for other, served in field.metadata["where"].items():
            if values[other] not in served and values[field.name] != field.default:
                remedy = f"it plays a part with {other} {' or '.join(map(str, served))}"
                raise InputError(field.name, values[field.name], f"left out with {other} {values[other]}", remedy)
