"""OpenDocument texts (.odt, ISO/IEC 26300) as Markdown: headings, paragraphs, lists and tables."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from stages.corpus_prep.reading.archives import attribute, child, local, opened_archive, title_of
from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.markup import table_markdown
from stages.corpus_prep.reading.plain_text import heading
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile

_SKIPPED = frozenset(
    ("annotation", "tracked-changes", "note-citation", "sequence-decls", "forms", "table-of-content")
)


def read_odt(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """One document per file."""
    with opened_archive(file) as archive:
        if "META-INF/manifest.xml" in archive.names and b"encryption-data" in archive.read(
            "META-INF/manifest.xml"
        ):
            raise DamagedFile("password", "is encrypted", "save it without its password")
        body = child(archive.xml("content.xml"), "body", "text")
        text = "\n\n".join(filter(None, _blocks(body))) if body is not None else ""
        title = title_of(archive, "meta.xml")
    if not text.strip():
        raise DamagedFile("no_text", "holds no text, perhaps pictures", "leave it out")
    yield ReadRow({"title": heading(text) or title or file.path.stem, "text": text + "\n"}, number=0)


def _blocks(parent: Element) -> Iterator[str]:
    for element in parent:
        tag = local(element)
        if tag in _SKIPPED:
            continue
        if tag == "h":
            level = attribute(element, "outline-level")
            yield f"{'#' * min(6, int(level) if level.isdigit() else 1)} {' '.join(_inline(element).split())}"
        elif tag == "p":
            yield _inline(element).strip()
        elif tag == "list":
            yield "\n".join(_items(element, 0))
        elif tag == "table":
            rows = [
                [_cell(c) for c in row if local(c) == "table-cell"]
                for row in element.iter()
                if local(row) == "table-row"
            ]
            yield table_markdown(rows)
        else:
            yield from _blocks(element)


def _cell(cell: Element) -> str:
    return " ".join(filter(None, _blocks(cell)))


def _items(element: Element, depth: int) -> Iterator[str]:
    for item in element:
        for inner in item:
            if local(inner) == "list":
                yield from _items(inner, depth + 1)
            elif text := _inline(inner).strip():
                yield f"{'  ' * depth}- {text}"


def _inline(element: Element) -> str:
    parts = [element.text or ""]
    for inner in element:
        tag = local(inner)
        if tag == "s":
            count = attribute(inner, "c")
            parts.append(" " * (int(count) if count.isdigit() else 1))
        elif tag in ("tab", "line-break"):
            parts.append("\t" if tag == "tab" else "\n")
        elif tag not in _SKIPPED:
            parts.append(_inline(inner))
        parts.append(inner.tail or "")
    return "".join(parts)
