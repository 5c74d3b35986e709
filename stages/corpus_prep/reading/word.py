"""Word files (.docx, ECMA-376) as Markdown: headings, lists, tables, code, foot notes; no page heads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from stages.corpus_prep.reading.archives import Archive, attribute, child, local, opened_archive, title_of
from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.markup import table_markdown
from stages.corpus_prep.reading.plain_text import heading
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile

DOCUMENT = "word/document.xml"
_CODE_STYLE = re.compile(r"code|preformatted|verbatim|source", re.IGNORECASE)
#: Text that tracked changes have taken out, drawings' fallbacks, and instructions of fields.
_SKIPPED = frozenset(("del", "moveFrom", "instrText", "Fallback", "footnoteReference", "annotationRef"))


@dataclass
class _Styles:
    """Style id -> heading level, and ids of styles for code; numbering id -> whether it counts."""

    levels: dict[str, int] = field(default_factory=dict)
    code: set[str] = field(default_factory=set)
    counted: dict[tuple[str, str], bool] = field(default_factory=dict)


def read_docx(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """One document per file."""
    with opened_archive(file) as archive:
        styles = _styles(archive)
        body = child(archive.xml(DOCUMENT), "body")
        text = _joined(_blocks(body, styles)) if body is not None else ""
        noted = _notes(archive, styles)
        title = title_of(archive, "docProps/core.xml")
    text = "\n\n".join(filter(None, [text, noted]))
    if not text.strip():
        raise DamagedFile("no_text", "holds no text, perhaps pictures", "leave it out")
    yield ReadRow({"title": heading(text) or title or file.path.stem, "text": text + "\n"}, number=0)


def _styles(archive: Archive) -> _Styles:
    styles = _Styles()
    if "word/styles.xml" in archive.names:
        for style in archive.xml("word/styles.xml"):
            if local(style) == "style":
                _note_style(style, styles)
    if "word/numbering.xml" in archive.names:
        _note_numbering(archive.xml("word/numbering.xml"), styles)
    return styles


def _note_style(style: Element, styles: _Styles) -> None:
    named = child(style, "name")
    name = attribute(named, "val") if named is not None else ""
    identity = attribute(style, "styleId")
    outline = child(style, "pPr", "outlineLvl")
    if match := re.fullmatch(r"(?:heading|标题) ?([1-9])", name, re.IGNORECASE):
        styles.levels[identity] = int(match[1])
    elif name.lower() == "title":
        styles.levels[identity] = 1
    elif outline is not None and attribute(outline, "val").isdigit():
        styles.levels[identity] = int(attribute(outline, "val")) + 1
    if _CODE_STYLE.search(name) and attribute(style, "type") == "paragraph":
        styles.code.add(identity)


def _note_numbering(numbering: Element, styles: _Styles) -> None:
    formats: dict[str, dict[str, bool]] = {}
    for abstract in numbering:
        if local(abstract) != "abstractNum":
            continue
        levels = formats.setdefault(attribute(abstract, "abstractNumId"), {})
        for level in abstract:
            form = child(level, "numFmt")
            if local(level) == "lvl" and form is not None:
                levels[attribute(level, "ilvl")] = attribute(form, "val") not in ("bullet", "none")
    for number in numbering:
        of = child(number, "abstractNumId") if local(number) == "num" else None
        if of is not None:
            for depth, counts in formats.get(attribute(of, "val"), {}).items():
                styles.counted[attribute(number, "numId"), depth] = counts


#: (what it is, text): a list item or a line of code joins the one before it.
_Block = tuple[str, str]


def _blocks(parent: Element, styles: _Styles) -> Iterator[_Block]:
    counts: dict[tuple[str, str], int] = {}
    for element in parent:
        tag = local(element)
        if tag == "p":
            yield from _paragraph(element, styles, counts)
        elif tag == "tbl":
            yield "table", _table(element, styles)
        elif tag in ("sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"):
            yield from _blocks(element, styles)


def _joined(blocks: Iterator[_Block]) -> str:
    parts: list[str] = []
    before = ""
    for kind, text in blocks:
        if not text.strip():
            continue
        if kind in ("item", "code") and kind == before:
            parts[-1] += "\n" + text
        else:
            parts.append(text)
        if kind != before and before == "code":
            parts[-2] += "\n```"
        if kind == "code" and before != "code":
            parts[-1] = "```\n" + parts[-1]
        before = kind
    if before == "code":
        parts[-1] += "\n```"
    return "\n\n".join(parts)


def _paragraph(element: Element, styles: _Styles, counts: dict[tuple[str, str], int]) -> Iterator[_Block]:
    text = "".join(_runs(element))
    properties = child(element, "pPr")
    style = _value(properties, "pStyle")
    outline = _value(properties, "outlineLvl")
    level = int(outline) + 1 if outline.isdigit() and outline != "9" else styles.levels.get(style, 0)
    number, depth = _value(properties, "numPr", "numId"), _value(properties, "numPr", "ilvl") or "0"
    if style in styles.code:
        yield "code", text.rstrip()
    elif not text.strip():
        return
    elif level:
        yield "heading", f"{'#' * min(level, 6)} {' '.join(text.split())}"
    elif number and number != "0":
        counts[number, depth] = counts.get((number, depth), 0) + 1
        mark = f"{counts[number, depth]}." if styles.counted.get((number, depth)) else "-"
        yield "item", f"{'  ' * int(depth if depth.isdigit() else 0)}{mark} {text.strip()}"
    elif style.lower().startswith("list"):
        yield "item", f"- {text.strip()}"
    else:
        yield "text", text.strip()


def _value(properties: Element | None, *path: str) -> str:
    found = child(properties, *path) if properties is not None else None
    return attribute(found, "val") if found is not None else ""


def _runs(element: Element) -> Iterator[str]:
    for inner in element:
        tag = local(inner)
        if tag in _SKIPPED:
            continue
        if tag == "t":
            yield inner.text or ""
        elif tag in ("tab", "ptab"):
            yield "\t"
        elif tag in ("br", "cr"):
            yield "\n"
        elif tag == "noBreakHyphen":
            yield "-"
        elif tag == "txbxContent":
            yield "\n" + "\n".join("".join(_runs(p)) for p in inner.iter() if local(p) == "p") + "\n"
        elif tag != "pPr":
            yield from _runs(inner)


def _table(element: Element, styles: _Styles) -> str:
    if any(local(inner) == "tbl" for inner in element.iter() if inner is not element):
        return _joined(_laid_out(element, styles))
    rows = []
    for row in (r for r in element.iter() if local(r) == "tr"):
        cells: list[str] = []
        for cell in (c for c in row if local(c) in ("tc", "sdt")):
            inner = cell if local(cell) == "tc" else child(cell, "sdtContent", "tc")
            continued = _value(inner, "tcPr", "vMerge") if inner is not None else ""
            merged = (
                inner is not None and child(inner, "tcPr", "vMerge") is not None and continued != "restart"
            )
            cells.append("" if inner is None or merged else _joined(_blocks(inner, styles)))
        rows.append(cells)
    return table_markdown(rows)


def _laid_out(element: Element, styles: _Styles) -> Iterator[_Block]:
    """What is in the cells of a table that holds others, one after the other."""
    for inner in element:
        yield from _blocks(inner, styles) if local(inner) == "tc" else _laid_out(inner, styles)


def _notes(archive: Archive, styles: _Styles) -> str:
    """Foot and end notes, below the text that they belong to."""
    found = []
    for member in ("word/footnotes.xml", "word/endnotes.xml"):
        if member in archive.names:
            for note in archive.xml(member):
                if not attribute(note, "type"):  # separators have one
                    found.append(_joined(_blocks(note, styles)))
    return "\n\n".join(filter(None, found))
