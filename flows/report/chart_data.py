"""A chart event made ready to draw: unusable points left out, reference lines told from measured ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """One point; `low` and `high` are the ends of its error bar."""

    x: float | str
    y: float
    low: float | None = None
    high: float | None = None

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest value that is drawn for it."""
        return (self.y if self.low is None else min(self.low, self.y)), (
            self.y if self.high is None else max(self.high, self.y)
        )


@dataclass(frozen=True)
class Series:
    """A line, or the bars of one colour."""

    label: str
    points: tuple[Point, ...]

    @property
    def has_intervals(self) -> bool:
        """Whether any point has an error bar."""
        return any(point.low is not None for point in self.points)

    @property
    def is_level(self) -> bool:
        """A straight level line to compare with, such as `gzip -9`."""
        return len(self.points) == 2 and self.points[0].y == self.points[1].y and not self.has_intervals


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    is_categorical: bool

    @property
    def points(self) -> Iterator[Point]:
        """All points of all series."""
        return (point for line in self.series for point in line.points)

    @property
    def categories(self) -> list[str]:
        """The names along a categorical axis in the order of their first appearance."""
        return list(dict.fromkeys(str(point.x) for point in self.points))

    @property
    def references(self) -> tuple[Series, ...]:
        """Bars without an error bar beside bars that have one: marks to compare with, such as `chance`."""
        if not any(line.has_intervals for line in self.series):
            return ()
        return tuple(line for line in self.series if not line.has_intervals)

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and highest value of all, error bars included."""
        ends = [point.extent for point in self.points]
        return min(low for low, _ in ends), max(high for _, high in ends)


def read_chart(event: Mapping[str, Any]) -> Chart | None:
    """The chart of a chart event; None where no point of it can be drawn."""
    lines = [Series(str(label), tuple(_points(rows))) for label, rows in event.get("series", {}).items()]
    kept = tuple(line for line in lines if line.points)
    if not kept:
        return None
    named = any(isinstance(point.x, str) for line in kept for point in line.points)
    if not named:
        kept = tuple(Series(s.label, tuple(sorted(s.points, key=lambda p: float(p.x)))) for s in kept)
    return Chart(
        title=str(event.get("title") or event.get("name", "")),
        x_label=str(event.get("x_label", "")),
        y_label=str(event.get("y_label", "")),
        series=kept,
        is_categorical=named or event.get("kind") == "bar",
    )


def _points(rows: Any) -> Iterator[Point]:
    for row in rows:
        if len(row) < 2 or not _is_number(row[1]) or not (isinstance(row[0], str) or _is_number(row[0])):
            continue
        has_interval = len(row) >= 4 and _is_number(row[2]) and _is_number(row[3])
        low, high = (float(row[2]), float(row[3])) if has_interval else (None, None)
        yield Point(row[0], float(row[1]), low, high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
