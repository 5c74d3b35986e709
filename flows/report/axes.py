"""Axes: round ticks, their labels, and the way from values to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flows.report.formats import large

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
MAX_DECIMALS = 6


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers, evenly spaced, the first at or below `low`, the last at or above `high`.

    About `target` intervals of 1, 2, 2.5 or 5 times a power of ten. Raises ValueError for no finite range.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"no range to put ticks on: {low} to {high}")
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        room = abs(low) * 0.1 or 0.5
        low, high = low - room, high + room
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in STEPS if power * factor >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [_rounded(index * step, step) for index in range(first, last + 1)]


def _rounded(value: float, step: float) -> float:
    return round(value, max(0, 2 - math.floor(math.log10(step)))) + 0.0  # + 0.0: no minus zero


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with as many decimals as the step needs, the same for all: `0.00 0.25 0.50`."""
    if max(abs(tick) for tick in ticks) >= 10_000:
        return ["0" if tick == 0 else large(tick) for tick in ticks]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    for decimals in range(MAX_DECIMALS + 1):
        if all(abs(round(tick, decimals) - tick) < 1e-3 * step for tick in ticks):
            return [f"{tick:,.{decimals}f}" for tick in ticks]
    return [f"{tick:.2e}" for tick in ticks]


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to [start, end] pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)
