"""A chart as a PNG picture, for places that take no SVG, such as image artifacts of Prefect."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.report.chart_data import Chart, Series, read_chart
from flows.report.formats import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2563eb", "#c2700a", "#04855f", "#c026a3", "#7c3aed", "#0e7f9c", "#5a8a0c", "#d03434")


def chart_png(chart_event: Mapping[str, Any]) -> bytes:
    """Draw a chart event with matplotlib. Raises ValueError where it has no point that can be drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = read_chart(chart_event)
    if chart is None:
        raise ValueError(f"chart {chart_event.get('name', '')!r} has no point that can be drawn")
    figure = Figure(figsize=(7.0, 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    (_draw_bars if chart.is_categorical else _draw_lines)(chart, axes)
    axes.set_title(_plain(chart.title))
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _plain(words: str) -> str:
    return clean(words).replace("$", r"\$")  # matplotlib takes dollars for formulas


def _draw_lines(chart: Chart, axes: Axes) -> None:
    for index, line in enumerate(chart.series):
        xs, ys = [float(p.x) for p in line.points], [p.y for p in line.points]
        style = "--" if line.is_level else "-"
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(xs, ys, style, color=colour, label=_plain(line.label), linewidth=1.6)
        if line.has_intervals:
            axes.errorbar(xs, ys, yerr=_errors(line), fmt="o", color=colour, capsize=3, markersize=4)
    axes.set_xlabel(_plain(chart.x_label))
    axes.set_ylabel(_plain(chart.y_label))
    axes.grid(alpha=0.25)


def _draw_bars(chart: Chart, axes: Axes) -> None:
    categories = chart.categories
    height = 0.8 / len(chart.series)
    for index, line in enumerate(chart.series):
        places = [categories.index(str(p.x)) + height * (index + 0.5) - 0.4 for p in line.points]
        errors = _errors(line) if line.has_intervals else None
        colour = COLOURS[index % len(COLOURS)]
        values = [p.y for p in line.points]
        axes.barh(places, values, height, xerr=errors, color=colour, label=_plain(line.label), capsize=2)
    axes.set_yticks(range(len(categories)), [_plain(name) for name in categories])
    axes.invert_yaxis()
    axes.set_xlabel(_plain(chart.y_label))
    axes.grid(axis="x", alpha=0.25)


def _errors(line: Series) -> list[list[float]]:
    ends = [point.extent for point in line.points]
    below = [point.y - low for point, (low, _) in zip(line.points, ends, strict=True)]
    above = [high - point.y for point, (_, high) in zip(line.points, ends, strict=True)]
    return [below, above]
