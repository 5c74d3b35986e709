"""Numbers as a person reads them; the same everywhere in the report."""

from __future__ import annotations

import math
from typing import Any

from stages.runtime.events import format_seconds

MISSING = "–"


def clean(value: object) -> str:
    """Text that every file can hold: lone surrogates and control characters become U+FFFD."""
    whole = str(value).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "\ufffd" for c in whole)


def cell(value: Any) -> str:
    """A table's cell: thousands apart, six digits at most, a dash for nothing."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value) or "none"
    return clean(value)


def number(value: float) -> str:
    """`0.0123`, `12.5`, `12,345`."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == round(value) else f"{value:.6g}"


def short(value: float) -> str:
    """Three or four digits, for labels: `0.712`, `4.31`, `12.5k`."""
    if abs(value) >= 10_000:
        return large(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def large(value: float) -> str:
    """`950`, `3.4k`, `4.2M`, `1.3B`."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def size(num_bytes: float) -> str:
    """`812 B`, `4.2 MB`: powers of 1000, as disks are sold."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    """`0.4s`, `45s`, `3m20s`."""
    return f"{seconds:.1f}s" if seconds < 9.95 else format_seconds(seconds)


def percent(fraction: float) -> str:
    """`92 %`, and never 100 % or 0 % for what is neither."""
    rounded = round(100 * fraction)
    exact = rounded not in (0, 100) or fraction in (0.0, 1.0)
    return f"{rounded} %" if exact else f"{100 * fraction:.1f} %"
