"""HTML from parts that are escaped by type: a plain `str` does not pass where `Html` is asked for."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, NewType

from flows.report.formats import cell, clean

Html = NewType("Html", str)
NOTHING = Html("")
_VOID = frozenset({"meta", "br", "line", "rect", "circle", "path", "polyline"})


def text(value: object) -> Html:
    """Any value as text that shows as it is."""
    return Html(html.escape(clean(value), quote=True))


def tag(name: str, /, *children: Html, **attributes: object) -> Html:
    """An element. `class_` is class, `stroke_width` is stroke-width; None leaves an attribute out."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Html(f"<{name}{pairs}/>")
    return Html(f"<{name}{pairs}>{''.join(children)}</{name}>")


def join(parts: Iterable[Html], separator: str = "") -> Html:
    """One after the other."""
    return Html(text(separator).join(parts))


def paragraph(words: object, class_: str | None = None) -> Html:
    """A paragraph of plain text."""
    return tag("p", text(words), class_=class_)


def missing(words: object) -> Html:
    """Says that something is not there, instead of leaving a hole."""
    return paragraph(words, "missing")


def bullets(items: Iterable[object]) -> Html:
    """A list of plain texts."""
    return tag("ul", join(tag("li", text(item)) for item in items))


def details(summary: Html, body: Html, *, is_open: bool = False) -> Html:
    """A part that opens on a click, without a script."""
    return tag("details", tag("summary", summary), body, open="" if is_open else None)


def table(columns: Sequence[object], rows: Sequence[Sequence[Any]], caption: object = "") -> Html:
    """Plain values as a table; columns of numbers are set flush right."""
    cells = [[text(cell(value)) for value in row] for row in rows]
    flush = [all(_is_numeric(row[i]) for row in rows if i < len(row)) for i in range(len(columns))]
    return table_of([text(column) for column in columns], cells, flush, caption)


def table_of(
    columns: Sequence[Html], rows: Sequence[Sequence[Html]], flush: Sequence[bool] = (), caption: object = ""
) -> Html:
    """A table of ready cells. `flush` marks the columns that are set right. It scrolls on its own if wide."""
    right = ["num" if i < len(flush) and flush[i] else None for i in range(len(columns))]
    head = join(
        tag("th", column, class_=kind, scope="col") for column, kind in zip(columns, right, strict=True)
    )
    body = join(
        tag("tr", join(tag("td", value, class_=kind) for value, kind in zip(row, right, strict=False)))
        for row in rows
    )
    title = tag("caption", text(caption)) if caption else NOTHING
    return tag(
        "div",
        tag("table", title, tag("thead", tag("tr", head)), tag("tbody", body)),
        class_="scroll",
        tabindex="0",
    )


def _is_numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
