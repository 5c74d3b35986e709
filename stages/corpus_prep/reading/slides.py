"""Slides (.pptx) as one document: each slide under its title, with its lists, tables and notes."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from stages.corpus_prep.reading.archives import (
    Archive,
    attribute,
    child,
    local,
    opened_archive,
    relations,
    title_of,
)
from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.markup import table_markdown
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile

PRESENTATION = "ppt/presentation.xml"
_TITLES = ("title", "ctrTitle")
#: Date, number and foot of a slide are on every one of them.
_FURNITURE = ("dt", "sldNum", "ftr", "hdr", "sldImg")


def read_pptx(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """One document per file, slides in the order in which they are shown."""
    with opened_archive(file) as archive:
        related = relations(archive, PRESENTATION)
        shown = [e for e in archive.xml(PRESENTATION).iter() if local(e) == "sldId"]
        names = [related[key][1] for e in shown if (key := e.get(_RELATION, "")) in related]
        text = "\n\n".join(filter(None, (_slide(archive, name) for name in names)))
        title = title_of(archive, "docProps/core.xml")
    if not text.strip():
        raise DamagedFile("no_text", "holds no text, perhaps pictures", "leave it out")
    first = text.split("\n", 1)[0]
    named = first.removeprefix("# ") if first.startswith("# ") else title
    yield ReadRow({"title": named[:200] or file.path.stem, "text": text + "\n"}, number=0)


_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def _slide(archive: Archive, name: str) -> str:
    blocks = list(_shapes(archive.xml(name)))
    notes = [target for kind, target in relations(archive, name).values() if kind == "notesSlide"]
    for note in notes:
        blocks += [block for block in _shapes(archive.xml(note)) if not block.isdigit()]
    return "\n\n".join(filter(None, blocks))


def _shapes(parent: Element) -> Iterator[str]:
    for element in parent:
        tag = local(element)
        if tag == "sp":
            yield _shape(element)
        elif tag == "tbl":
            rows = [
                [_lines(cell) for cell in row if local(cell) == "tc"] for row in element if local(row) == "tr"
            ]
            yield table_markdown(rows)
        else:
            yield from _shapes(element)


def _shape(element: Element) -> str:
    place = child(element, "nvSpPr", "nvPr", "ph")
    kind = attribute(place, "type") if place is not None else ""
    if kind in _FURNITURE:
        return ""
    text = _lines(element, as_list=place is not None and kind in ("", "body", "obj"))
    return f"# {' '.join(text.split())}" if kind in _TITLES and text.strip() else text


def _lines(element: Element, as_list: bool = False) -> str:
    lines = []
    for paragraph in (e for e in element.iter() if local(e) == "p"):
        pieces = {"br": "\n", "tab": "\t"}
        text = "".join(
            pieces.get(local(e), "") or (e.text or "" if local(e) == "t" else "") for e in paragraph.iter()
        )
        properties = child(paragraph, "pPr")
        level = properties.get("lvl", "0") if properties is not None else "0"
        if text.strip():
            lines.append((int(level) if level.isdigit() else 0, text.strip()))
    if as_list and len(lines) > 1:
        return "\n".join(f"{'  ' * level}- {text}" for level, text in lines)
    return "\n".join(text for _, text in lines)
