"""The report of a run: one HTML page, a Markdown twin and ten lines, made of manifests and events alone.

Pure functions: the same record, manifests and events give the same bytes. Nothing here reads a clock, a
file or the network, and nothing is drawn by a script: the page is HTML, CSS and SVG.
"""

from flows.report.charts import chart_png, chart_svg
from flows.report.essence import essence
from flows.report.markdown import render_markdown
from flows.report.page import render_html
from flows.report.record import RunRecord, StageRecord

__all__ = [
    "RunRecord",
    "StageRecord",
    "chart_png",
    "chart_svg",
    "essence",
    "render_html",
    "render_markdown",
]
