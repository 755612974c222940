"""Flat TOML out: what a configuration file holds. Reading is tomllib's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["to_toml"]


def to_toml(values: Mapping[str, Any]) -> str:
    """Return ``values`` as lines of TOML: strings, booleans, numbers and lists of these under keys.

    Keys are letters, digits, hyphens and underscores. Raises ValueError for what TOML, or this, cannot hold.

    >>> print(to_toml({"dataset": "cora", "nu": 0.3, "stages": [2, 5]}), end="")
    dataset = "cora"
    nu = 0.3
    stages = [2, 5]
    """
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in values.items())


def _key(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise ValueError(f"{key!r} is no plain key of TOML")
    return key


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate, as of a path that is no text, is a ValueError
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    raise ValueError(f"{value!r} has no place in a configuration file")


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return repr(value)  # TOML takes 1e-05 as Python writes it, and 1.0 stays a float
