"""Books (.epub): one document per chapter, in reading order, without the table of contents."""

from __future__ import annotations

import posixpath
import urllib.parse
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from stages.corpus_prep.reading.archives import Archive, local, opened_archive
from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.markup import markdown_of
from stages.corpus_prep.reading.plain_text import decoded, heading
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.web_pages import parsed_html


def read_epub(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """Chapters, numbered in reading order; the title is the book's, and the chapter's where it has one."""
    num_texts = 0
    with opened_archive(file) as archive:
        if "META-INF/encryption.xml" in archive.names and "META-INF/rights.xml" in archive.names:
            raise DamagedFile("password", "is protected (DRM)", "leave it out")
        package = archive.xml(_package_name(archive))
        book = next((" ".join((e.text or "").split()) for e in package.iter() if local(e) == "title"), "")
        for number, name in enumerate(_chapters(archive, package)):
            text = _chapter(decoded(archive.read(name), notes))
            if not text:
                continue
            num_texts += 1
            title = ": ".join(filter(None, dict.fromkeys((book, heading(text)))))
            yield ReadRow({"title": title[:200] or file.path.stem, "text": text + "\n"}, number=number)
    if not num_texts:
        raise DamagedFile("no_text", "holds no text, perhaps pictures of pages", "leave it out")


def _chapter(html: str) -> str:
    tree = parsed_html(html)
    body = tree.find("body") if tree is not None else None
    return markdown_of(body) if body is not None else ""


def _package_name(archive: Archive) -> str:
    container = archive.xml("META-INF/container.xml")
    names = (e.get("full-path", "") for e in container.iter() if local(e) == "rootfile")
    return next(names, "") or "content.opf"


def _chapters(archive: Archive, package: Element) -> Iterator[str]:
    folder = posixpath.dirname(_package_name(archive))
    items = {e.get("id", ""): e for e in package.iter() if local(e) == "item"}
    for reference in (e for e in package.iter() if local(e) == "itemref"):
        item = items.get(reference.get("idref", ""))
        if item is None or "nav" in item.get("properties", "").split():
            continue
        place = urllib.parse.unquote(item.get("href", ""))
        name = posixpath.normpath(posixpath.join(folder, place))
        if name in archive.names and "html" in item.get("media-type", "html"):
            yield name
