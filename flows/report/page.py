"""The page: head, contents and sections in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data_contracts.manifest import Manifest
from flows.report import sections, stage_details
from flows.report.batch import trained_batch
from flows.report.essence import essence_lines
from flows.report.formats import duration
from flows.report.markup import Html, join, tag, text
from flows.report.record import RunRecord
from flows.report.run_view import RunView
from flows.report.samples import side_by_side
from flows.report.style import STYLE

SECTIONS: tuple[tuple[str, str, Callable[[RunView], Html]], ...] = (
    ("stages", "Stages", sections.stage_table),
    ("why", "Why it ran", sections.reasons),
    ("warnings", "Warnings", sections.warnings),
    ("funnel", "Funnel", sections.funnel),
    ("curves", "Loss curves", sections.curves),
    ("inside", "Inside the base model", sections.inside),
    ("batch", "What fine-tuning learns", trained_batch),
    ("samples", "Samples, from base to int4", side_by_side),
    ("scores", "Scores", sections.scores),
    ("sizes", "Sizes", sections.sizes),
    ("details", "Stage by stage", stage_details.stages),
    ("configuration", "Configuration", stage_details.configuration),
    ("provenance", "Provenance", stage_details.provenance),
)


def render_html(
    run: RunRecord, manifests: Mapping[str, Manifest], events: Mapping[str, list[dict[str, Any]]]
) -> str:
    """The report as one HTML file: no script, no link to the outside, the same bytes for the same input.

    `manifests` and `events` are by stage and may lack any; the page then says what is missing.
    """
    view = RunView(run, manifests, events)
    body = join([_head(view), _contents(), tag("main", join(_section(view, *each) for each in SECTIONS))])
    title = f"Glassworks run {run.run_id}"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", text(title)),
        tag("style", Html(STYLE)),
    ]
    page = tag("html", tag("head", join(head)), tag("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _section(view: RunView, key: str, title: str, make: Callable[[RunView], Html]) -> Html:
    return tag("section", tag("h2", text(title)), make(view), id=key)


def _contents() -> Html:
    links = join(tag("li", tag("a", text(title), href=f"#{key}")) for key, title, _ in SECTIONS)
    return tag("nav", tag("ul", links), aria_label="Contents")


def _head(view: RunView) -> Html:
    run = view.record
    status = tag("span", text(run.status), class_=f"badge {run.status}")
    when = f"preset {run.preset} · started {run.started_at} · {duration(run.seconds)}"
    failed = [tag("pre", text(f"{s.name}: {s.error}"), class_="error") for s in run.stages if s.error]
    return tag(
        "header",
        tag("h1", text("Glassworks "), tag("span", text(run.run_id), class_="run"), text(" "), status),
        tag("p", text(when), class_="note"),
        tag("p", tag("code", text(f"$ {run.command}")), class_="command"),
        join(failed),
        _essence(view),
    )


def _essence(view: RunView) -> Html:
    pairs = join(
        tag("div", tag("dt", text(line.label)), tag("dd", text(line.text))) for line in essence_lines(view)
    )
    return tag("dl", pairs, class_="essence")
