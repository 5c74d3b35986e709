"""Matrices as shades: attention maps, and the loss around a model.

All cells of one shade are one path, so a page with many maps stays small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flows.report.markup import NOTHING, Html, join, missing, tag, text

CELL_PX = 12
CHARACTER_PX = 5.2
NUM_SHADES = 10
MAX_NAMES = 30
MAX_NAME_CHARACTERS = 9
Matrix = Sequence[Sequence[float | None]]


def heatmap_svg(event: Mapping[str, Any], stage: str = "") -> Html:
    """A figure with one drawing per panel, all of one scale; words where nothing can be drawn."""
    panels: Mapping[str, Matrix] = event.get("panels") or {}
    values = [value for rows in panels.values() for value in _numbers(rows)]
    if not values:
        return missing(f"{event.get('title') or event.get('name', 'a map')}: nothing to draw")
    low, high = min(values), max(values)
    title = str(event.get("title") or event.get("name", ""))
    source = tag("span", text(stage), class_="source") if stage else NOTHING
    drawn = [_panel(event, label, rows, low, high) for label, rows in panels.items()]
    note = f"rows: {event.get('y_label', '')}; columns: {event.get('x_label', '')}"
    return tag(
        "figure",
        tag("figcaption", text(title), source),
        tag("p", text(f"{note}. "), _key(low, high), class_="note"),
        tag("div", join(drawn), class_="panels"),
        class_="wide" if len(drawn) > 1 else None,
    )


def _key(low: float, high: float) -> Html:
    """The shades from the lowest value to the highest."""
    shades = [
        tag("i", class_="shade", style=f"opacity:{_opacity(shade):g}") for shade in range(NUM_SHADES + 1)
    ]
    return join([text(f"{low:.3g} "), *shades, text(f" {high:.3g}")])


def _panel(event: Mapping[str, Any], label: str, rows: Matrix, low: float, high: float) -> Html:
    x_names, y_names = list(event.get("x_names", ())), list(event.get("y_names", ()))
    left, bottom = _room(y_names), _room(x_names)
    width, height = max(len(row) for row in rows) * CELL_PX, len(rows) * CELL_PX
    names = [
        tag("text", text(_short(name)), x=left - 3, y=(row + 0.78) * CELL_PX, class_="end tiny")
        for row, name in _shown(y_names)
    ]
    names += [_column_name(_short(name), left + (column + 0.72) * CELL_PX, height + 4)
              for column, name in _shown(x_names)]  # fmt: skip
    cells = tag("g", *_shades(rows, low, high), transform=f"translate({left:g} 0) scale({CELL_PX})")
    frame = tag("path", d=f"M{left:g} 0h{width}v{height}h-{width}z", class_="frame")
    box = f"0 0 {left + width + 2:g} {height + bottom:g}"
    svg = tag("svg", tag("title", text(label)), cells, frame, *names, viewBox=box, role="img")
    return tag("div", tag("p", text(label), class_="panel-name"), svg)


def _column_name(name: str, x: float, y: float) -> Html:
    return tag("text", text(name), class_="end tiny", transform=f"translate({x:g} {y:g}) rotate(-90)")


def _shown(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """All names, or evenly spread ones where they would touch."""
    every = math.ceil(len(names) / MAX_NAMES) if names else 1
    return ((place, str(name)) for place, name in enumerate(names) if place % every == 0)


def _room(names: Sequence[str]) -> float:
    return 6 + CHARACTER_PX * max((len(_short(str(name))) for name in names), default=0)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARACTERS else name[: MAX_NAME_CHARACTERS - 1] + "…"


def _shades(rows: Matrix, low: float, high: float) -> Iterator[Html]:
    """One path per shade; cells without a number stay empty."""
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            if value is not None and math.isfinite(value):
                shade = round(NUM_SHADES * (value - low) / (high - low)) if high > low else 0
                paths.setdefault(shade, []).append(f"M{x} {y}h1v1h-1z")
    for shade in sorted(paths):
        if shade > 0:
            yield tag("path", d="".join(paths[shade]), class_="cells", fill_opacity=f"{_opacity(shade):g}")


def _opacity(shade: int) -> float:
    return round(shade / NUM_SHADES, 2)


def _numbers(rows: Matrix) -> Iterator[float]:
    return (value for row in rows for value in row if value is not None and math.isfinite(value))
