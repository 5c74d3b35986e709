"""One finding of `glassworks doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The outcome of one check. Something `optional` that fails is only worth knowing."""

    name: str
    passed: bool
    found: str
    remedy: str = ""
    optional: bool = False
