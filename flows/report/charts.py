"""Charts drawn by hand as SVG: lines, horizontal bars and points with error bars.

Colours come from the page's style sheet (classes s0 to s7), so one drawing fits light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.axes import Scale, nice_ticks, tick_labels
from flows.report.chart_data import Chart, Point, Series, read_chart
from flows.report.chart_image import chart_png
from flows.report.formats import short
from flows.report.heatmaps import heatmap_svg
from flows.report.markup import NOTHING, Html, join, missing, tag, text

__all__ = ["chart_png", "chart_svg"]

WIDTH = 480
LINE_HEIGHT_PX = 270
NUM_COLOURS = 8
CHARACTER_PX = 6.6
MAX_CATEGORY_CHARACTERS = 24
MAX_DOTS = 40
NARROW_RANGE = 0.35
"""Below this spread relative to the values, dots on a cut axis say more than bars from zero."""


def chart_svg(event: Mapping[str, Any], stage: str = "") -> Html:
    """A figure with title, legend and drawing, or words where nothing can be drawn; `stage` is its source."""
    if event.get("kind") == "heatmap":
        return heatmap_svg(event, stage)
    chart = read_chart(event)
    if chart is None:
        return missing(f"{event.get('title') or event.get('name', 'a chart')}: nothing to draw")
    drawing, height = _draw_bars(chart) if chart.is_categorical else (_draw_lines(chart), LINE_HEIGHT_PX)
    source = tag("span", text(stage), class_="source") if stage else NOTHING
    svg = tag(
        "svg",
        tag("title", text(f"{chart.title}: {chart.y_label} by {chart.x_label}")),
        drawing,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
    )
    return tag("figure", tag("figcaption", text(chart.title), source), _legend(chart), svg)


def _legend(chart: Chart) -> Html:
    if len(chart.series) == 1 and (chart.is_categorical or chart.series[0].label == chart.y_label):
        return NOTHING
    items = []
    for index, line in enumerate(chart.series):
        marked = line in chart.references if chart.is_categorical else line.is_level
        swatch = tag("i", class_=f"key s{index % NUM_COLOURS}{' dashed' if marked else ''}")
        value = NOTHING if chart.is_categorical else tag("b", text(short(line.points[-1].y)))
        items.append(tag("li", swatch, text(f"{line.label} "), value))
    return tag("ul", join(items), class_="legend")


def _draw_lines(chart: Chart) -> Html:
    y_ticks = nice_ticks(*chart.extent)
    x_values = [float(point.x) for point in chart.points]
    y_names = tick_labels(y_ticks)
    left = 26 + CHARACTER_PX * max(len(name) for name in y_names)
    right, bottom = WIDTH - 16.0, LINE_HEIGHT_PX - 40.0
    x_scale = _x_scale(min(x_values), max(x_values), left, right)
    y_scale = Scale(y_ticks[0], y_ticks[-1], bottom, 8)
    parts = [
        _horizontal_grid(y_scale, y_ticks, y_names, left, right),
        _x_ticks(x_scale, bottom, all(x.is_integer() for x in x_values)),
        _axis_titles(chart.x_label, chart.y_label, (left + right) / 2, (8 + bottom) / 2, LINE_HEIGHT_PX - 6),
        *(_line(line, i % NUM_COLOURS, x_scale, y_scale) for i, line in enumerate(chart.series)),
    ]
    return join(parts)


def _horizontal_grid(
    scale: Scale, ticks: Sequence[float], names: Sequence[str], left: float, right: float
) -> Html:
    parts = []
    for tick, name in zip(ticks, names, strict=True):
        y = scale(tick)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", text(name), x=left - 6, y=round(y + 4, 1), class_="end"))
    return join(parts)


def _x_scale(low: float, high: float, left: float, right: float) -> Scale:
    """From the first to the last point, from 0 where that is near; around a single point."""
    if low == high:
        ticks = nice_ticks(low, high)
        return Scale(ticks[0], ticks[-1], left, right)
    return Scale(0.0 if 0 < low <= 0.05 * high else low, high, left, right)


def _x_ticks(scale: Scale, bottom: float, only_whole: bool) -> Html:
    """only_whole: there is no layer 1.5 and no half step."""
    ticks = [tick for tick in nice_ticks(scale.low, scale.high) if scale.low <= tick <= scale.high]
    ticks = [tick for tick in ticks if tick.is_integer()] if only_whole else ticks
    parts = [tag("line", x1=scale.start, x2=scale.end, y1=bottom, y2=bottom, class_="axis")]
    for tick, name in zip(ticks, tick_labels(ticks) if ticks else [], strict=True):
        x = scale(tick)
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(tag("text", text(name), x=x, y=bottom + 17, class_="mid"))
    return join(parts)


def _axis_titles(x_label: str, y_label: str, x_middle: float, y_middle: float, bottom: float) -> Html:
    return join(
        [
            tag("text", text(x_label), x=round(x_middle, 1), y=bottom, class_="mid label"),
            tag(
                "text",
                text(y_label),
                x=0,
                y=0,
                class_="mid label",
                transform=f"translate(12 {y_middle:.1f}) rotate(-90)",
            ),
        ]
    )


def _line(line: Series, colour: int, x_scale: Scale, y_scale: Scale) -> Html:
    places = [(x_scale(float(point.x)), y_scale(point.y)) for point in line.points]
    path = tag(
        "polyline",
        points=" ".join(f"{x:g},{y:g}" for x, y in places),
        class_=f"line s{colour}{' dashed' if line.is_level else ' thin' if len(places) > MAX_DOTS else ''}",
    )
    if line.is_level or (len(places) > MAX_DOTS and not line.has_intervals):
        return path
    dots = []
    for point, (x, y) in zip(line.points, places, strict=True):
        if point.low is not None and point.high is not None:
            dots.append(_whisker_up(x, y_scale(point.low), y_scale(point.high), colour))
        dots.append(_dot(x, y, colour, f"{line.label}, {short(float(point.x))}: {_told(point)}"))
    return join([path, *dots])


def _whisker_up(x: float, low: float, high: float, colour: int) -> Html:
    path = f"M{x - 3:g} {low:g}h6M{x - 3:g} {high:g}h6M{x:g} {low:g}V{high:g}"
    return tag("path", d=path, class_=f"whisker s{colour}")


def _dot(x: float, y: float, colour: int, told: str) -> Html:
    return tag("circle", tag("title", text(told)), cx=x, cy=y, r=2.6, class_=f"dot s{colour}")


def _told(point: Point) -> str:
    interval = "" if point.low is None else f" ({point.low:.4g} to {point.high:.4g})"
    return f"{point.y:.4g}{interval}"


def _draw_bars(chart: Chart) -> tuple[Html, int]:
    bars = [line for line in chart.series if line not in chart.references]
    thickness = 18 if len(bars) == 1 else 13
    group, gap = thickness * len(bars), 9
    categories = chart.categories
    height = round(14 + len(categories) * (group + gap) + 40)
    scale, ticks = _value_axis(chart)
    bottom = height - 40.0
    parts, values = [_vertical_grid(scale, ticks, bottom)], list[Html]()
    for row, category in enumerate(categories):
        top = 8 + row * (group + gap)
        parts.append(_category(category, scale.start, top + group / 2))
        for place, line in enumerate(bars):
            colour = chart.series.index(line) % NUM_COLOURS
            middle = top + thickness * (place + 0.5)
            drawn = [p for p in line.points if str(p.x) == category]
            parts += [_bar(p, scale, middle, thickness, colour, line.label) for p in drawn]
            values += [_value(p, scale, middle) for p in drawn]
        parts += _marks(chart, category, scale, top - 3, top + group + 3)
    x_middle = round((scale.start + scale.end) / 2, 1)
    parts.append(tag("text", text(chart.y_label), x=x_middle, y=height - 6, class_="mid label"))
    return join([*parts, *values]), height


def _value_axis(chart: Chart) -> tuple[Scale, list[float]]:
    low, high = chart.extent
    from_zero = not _dots_say_more(chart)
    ticks = nice_ticks(min(low, 0.0) if from_zero else low, max(high, 0.0) if from_zero else high)
    longest = max(len(_shortened(name)) for name in chart.categories)
    return Scale(ticks[0], ticks[-1], 14 + CHARACTER_PX * longest, WIDTH - 52), ticks


def _dots_say_more(chart: Chart) -> bool:
    low, high = chart.extent
    measured = [line for line in chart.series if line not in chart.references]
    return all(s.has_intervals for s in measured) and low > 0 and high - low < NARROW_RANGE * high


def _vertical_grid(scale: Scale, ticks: Sequence[float], bottom: float) -> Html:
    parts = []
    for tick, name in zip(ticks, tick_labels(ticks), strict=True):
        x = scale(tick)
        kind = "axis" if tick == 0 or tick == ticks[0] else "grid"
        parts.append(tag("line", x1=x, x2=x, y1=4, y2=bottom, class_=kind))
        parts.append(tag("text", text(name), x=x, y=bottom + 16, class_="mid"))
    return join(parts)


def _category(name: str, left: float, middle: float) -> Html:
    shown = _shortened(name)
    title = tag("title", text(name)) if shown != name else NOTHING
    return tag("text", title, text(shown), x=round(left - 7, 1), y=round(middle + 4, 1), class_="end name")


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_CATEGORY_CHARACTERS else name[: MAX_CATEGORY_CHARACTERS - 1] + "…"


def _bar(point: Point, scale: Scale, middle: float, thickness: float, colour: int, label: str) -> Html:
    zero, end = scale(max(scale.low, 0.0)), scale(point.y)
    low, high = (scale(value) for value in point.extent)
    told = tag("title", text(f"{point.x}, {label}: {_told(point)}"))
    parts = []
    if scale.low > 0:
        parts.append(tag("circle", told, cx=end, cy=middle, r=4, class_=f"dot s{colour}"))
    else:
        x, width = min(zero, end), max(abs(end - zero), 0.8)
        y, height = middle - thickness / 2 + 1, thickness - 2
        parts.append(
            tag("rect", told, x=x, y=y, width=round(width, 1), height=height, rx=2, class_=f"bar s{colour}")
        )
    if point.low is not None:
        path = f"M{low:g} {middle - 3:g}v6M{high:g} {middle - 3:g}v6M{low:g} {middle:g}H{high:g}"
        parts.append(tag("path", d=path, class_="whisker" + (f" s{colour}" if scale.low > 0 else "")))
    return join(parts)


def _value(point: Point, scale: Scale, middle: float) -> Html:
    """The number beside a bar; drawn last, so that no mark crosses it."""
    end = max(scale(point.extent[1]), scale(max(scale.low, 0.0)))
    return tag("text", text(short(point.y)), x=round(end + 5, 1), y=middle + 4, class_="value")


def _marks(chart: Chart, category: str, scale: Scale, top: float, bottom: float) -> list[Html]:
    marks = []
    for line in chart.references:
        colour = chart.series.index(line) % NUM_COLOURS
        for point in line.points:
            if str(point.x) == category:
                x = scale(point.y)
                told = tag("title", text(f"{line.label}: {_told(point)}"))
                marks.append(
                    tag("line", told, x1=x, x2=x, y1=top, y2=bottom, class_=f"line s{colour} dashed")
                )
    return marks
