"""The first batch of the fine-tuning in colours: what the loss counts, what is only read, where it is cut."""

from __future__ import annotations

import itertools
from typing import Any

from flows.report.markup import Html, join, missing, paragraph, tag, text
from flows.report.run_view import Event, RunView

Stretch = dict[str, Any]


def trained_batch(view: RunView) -> Html:
    """One card per row; a conversation begins at a line of its own."""
    event = view.batch("sft")
    if event is None:
        return missing("sft showed no batch.")
    rows = [_row(number, row) for number, row in enumerate(event["rows"], start=1)]
    return join([_legend(event), *rows])


def _legend(event: Event) -> Html:
    said = paragraph(
        f"{event['caption']}, as the model sees it. Conversations of one row do not see each other.", "note"
    )
    marks = [
        tag("span", text("the loss counts it"), class_="trained"),
        tag("span", text("only read"), class_="context"),
        tag("span", text("✂ end cut off: longer than a row"), class_="cut"),
    ]
    return join([said, tag("p", join(marks, " · "), class_="batch")])


def _row(number: int, row: list[Stretch]) -> Html:
    talks = [
        tag("pre", join(_stretch(stretch) for stretch in talk), dir="auto")
        for _, talk in itertools.groupby(row, key=lambda stretch: stretch["conversation"])
    ]
    head = tag("p", text(f"Row {number}: {_counted(len(talks), 'conversation')}"), class_="note")
    return tag("div", head, join(talks), class_="card batch")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _stretch(stretch: Stretch) -> Html:
    weight = stretch["weight"]
    kind = "trained" if weight else "context"
    note = [tag("sup", text(f"×{weight:g}"))] if weight not in (0, 1) else []
    cut = [tag("span", text("✂"), class_="cut", title="longer than a row: its end was cut off")]
    shown = tag("span", text(stretch["text"]), *note, class_=kind)
    return join([shown, *(cut if stretch["is_cut"] else [])])
