"""Fused kernels and their loaders; everything here has an equal in plain torch that is used where it is missing."""

from __future__ import annotations
