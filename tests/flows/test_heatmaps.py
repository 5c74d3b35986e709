"""Matrices drawn as shades: every cell once, in its place, at its shade."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flows.look import look, page
from flows.report.charts import chart_svg
from stages.runtime.errors import UserError
from stages.runtime.store import Store


def heatmap(panels: dict[str, list[list[Any]]], names: list[str] | None = None) -> dict[str, Any]:
    return {
        "event": "chart", "name": "map", "title": "A <map>", "kind": "heatmap", "series": {},
        "panels": panels,
        "x_label": "key", "y_label": "query", "x_names": names or [], "y_names": names or [],
    }  # fmt: skip


def cells(svg: str) -> dict[tuple[int, int], float]:
    """(column, row) -> opacity of every cell that is drawn."""
    found = {}
    for path, opacity in re.findall(r'<path d="([^"]*)" class="cells" fill-opacity="([^"]*)"', svg):
        for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", path):
            assert (int(x), int(y)) not in found
            found[int(x), int(y)] = float(opacity)
    return found


def test_every_cell_has_the_shade_of_its_value() -> None:
    svg = chart_svg(heatmap({"one": [[0.0, 0.26], [1.0, 0.5]]}), "pretrain")
    assert cells(svg) == {(1, 0): 0.3, (0, 1): 1.0, (1, 1): 0.5}
    assert "A &lt;map&gt;" in svg and "rows: query; columns: key" in svg and "pretrain" in svg


def test_panels_share_one_scale() -> None:
    svg = chart_svg(heatmap({"low": [[2.0, 3.0]], "high": [[7.0]]}))
    low, high = svg.split("high</p>")
    assert cells(low) == {(1, 0): 0.2}
    assert cells(high) == {(0, 0): 1.0}


@pytest.mark.parametrize("panels", [{}, {"one": []}, {"one": [[None, float("nan")]]}])
def test_what_cannot_be_drawn_is_said(panels: dict[str, list[list[Any]]]) -> None:
    assert "nothing to draw" in chart_svg(heatmap(panels))


def test_a_flat_map_and_missing_values_are_drawn_empty() -> None:
    assert cells(chart_svg(heatmap({"one": [[1.5, 1.5]]}))) == {}
    assert cells(chart_svg(heatmap({"one": [[None, 1.0], [0.0]]}))) == {(1, 0): 1.0}


def test_names_are_escaped_shortened_and_thinned() -> None:
    names = [f"<{number}>" for number in range(90)]
    svg = chart_svg(heatmap({"one": [[0.0] * 90 for _ in range(89)] + [[1.0] * 90]}, names))
    assert "&lt;0&gt;" in svg and "&lt;3&gt;" in svg and "&lt;1&gt;" not in svg and "<1>" not in svg
    assert "antidises" not in chart_svg(heatmap({"one": [[0, 1]]}, ["antidisestablishment", "b"]))


def test_a_page_holds_charts_and_tables() -> None:
    table = {"event": "table", "name": "t", "columns": ["layer"], "rows": [[41]], "caption": "The layers"}
    drawn = page("base of run", [heatmap({"one": [[0.0, 1.0]]}), table, {"event": "log", "message": "no"}])
    assert drawn.startswith("<!doctype html>") and "Inside base of run" in drawn
    assert cells(drawn) == {(1, 0): 1.0} and "41" in drawn and "The layers" in drawn


def test_only_models_in_float32_are_looked_into(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="no looking into 'int8'"):
        look(Store(tmp_path), None, "int8", [], tmp_path / "look.html")
