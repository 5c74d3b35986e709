"""HTML pages: the main content, found by trafilatura, as Markdown.

A page of which trafilatura keeps next to nothing (short ones, and ones without running text) is read as a
whole, without its menus. Barbaresi 2021, "Trafilatura: A Web Scraping Library and Command-Line Tool".
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.json_files import whole
from stages.corpus_prep.reading.markup import markdown_of, with_marks
from stages.corpus_prep.reading.packages import needs
from stages.corpus_prep.reading.plain_text import decoded
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import opened

MAX_HTML_BYTES = 32 << 20
#: Deeper trees are traps: every walk over them is a recursion.
MAX_DEPTH = 150
#: Below this share of the text of the whole page, the main content was not found.
LEAST_MAIN_SHARE = 0.2
_DECLARED = re.compile(rb"""<meta[^>]{0,80}charset\s*=\s*["']?\s*([\w-]{3,20})""", re.IGNORECASE)
_PAGE_FURNITURE = ("header", "footer", "aside")


def read_html(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """One document per page, with the title that the page gives itself."""
    with opened(file, notes) as stream:
        data = whole(stream, MAX_HTML_BYTES, "split it: a page of this size is a list of pages")
    title, text = page(_text(data, notes))
    if not text:
        raise DamagedFile("no_text", "is a page without text", "leave it out")
    yield ReadRow({"title": title or file.path.name.split(".")[0], "text": text + "\n"}, number=0)


def _text(data: bytes, notes: ReadNotes) -> str:
    """Decoded as the page says that it should be, where that works; else as its bytes look."""
    declared = _DECLARED.search(data[:4096])
    encoding = declared[1].decode().lower() if declared else ""
    encoding = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252"}.get(encoding, encoding)
    if encoding and encoding not in ("utf-8", "utf8", "utf-16"):
        try:
            text = data.decode(encoding)
        except (LookupError, UnicodeDecodeError):
            return decoded(data, notes)
        notes.count(encoding)
        return text
    return decoded(data, notes)


def page(html: str) -> tuple[str, str]:
    """(title, Markdown of the main content) of an HTML page."""
    with needs("trafilatura", "HTML"):
        import trafilatura
    tree = parsed_html(html)
    if tree is None:
        return "", ""
    title = " ".join(tree.findtext(".//title", "").split())[:200]
    everything = body_markdown(copy.deepcopy(tree))
    kept = trafilatura.extract(
        with_marks(tree),
        output_format="html",
        include_tables=True,
        include_formatting=True,
        include_comments=False,
        favor_recall=True,
    )
    body = parsed_html(kept) if kept else None
    main = markdown_of(body) if body is not None else ""
    return title, _unfenced(main if len(main) >= LEAST_MAIN_SHARE * len(everything) else everything)


def _unfenced(text: str) -> str:
    """A page that is one preformatted text is a plain text, not code."""
    alone = text.startswith("```\n") and text.endswith("\n```") and text.count("```") == 2
    return text[4:-4] if alone else text


def parsed_html(text: str) -> Any:
    """The tree of a page, however broken it is; None for nothing."""
    with needs("lxml", "HTML"):
        from lxml import etree, html
    # Without the declaration of an encoding, which lxml does not want in text that is decoded already.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff")).replace("\x00", "")
    if not text.strip():
        return None
    try:
        tree = html.document_fromstring(text, parser=html.HTMLParser(huge_tree=True))
    except (ValueError, etree.ParserError):
        return None
    if _is_too_deep(tree):
        raise DamagedFile(
            "broken", f"nests elements over {MAX_DEPTH} deep", "leave it out: no page needs that"
        )
    return tree


def _is_too_deep(tree: Any) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for element in level for child in element]
        if not level:
            return False
    return True


def body_markdown(tree: Any) -> str:
    """The whole page without menus, page heads and feet."""
    body = tree.find("body") if tree.find("body") is not None else tree
    if body.find(".//main") is not None or body.find(".//article") is not None:
        for name in _PAGE_FURNITURE:
            for element in list(body.iter(name)):
                if not any(parent.tag in ("main", "article") for parent in element.iterancestors()):
                    element.drop_tree()
    return markdown_of(body)
