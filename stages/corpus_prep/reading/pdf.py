"""PDF files: the text layer of all pages as one document, in the order in which the file draws it.

A PDF knows no paragraphs, only lines at places; `pdf_lines` makes text of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes, Reject
from stages.corpus_prep.reading.packages import needs
from stages.corpus_prep.reading.pdf_lines import text_of_pages
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import read_head

MAX_PAGES = 20_000
MAX_PDF_BYTES = 512 << 20
#: A page number or a watermark alone is no text layer.
LEAST_CHARACTERS = 10


def read_pdf(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """One document per file. A page that cannot be read is a reject of its own; the others are read."""
    with needs("pypdf", "a PDF"):
        import pypdf
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings name no file
    if b"%PDF-" not in read_head(file):
        raise DamagedFile("broken", "is no PDF: it does not begin with %PDF-", "name it as what it is")
    if file.path.stat().st_size > MAX_PDF_BYTES:
        raise DamagedFile("too_large", f"is over {MAX_PDF_BYTES >> 20} MB", "split it: qpdf --split-pages")
    with open(file.path, "rb") as stream:
        reader = _opened(pypdf, stream)
        texts = list(_pages(reader, file, notes))
        title = _title(reader)
        if sum(len(text.strip()) for text in texts) < LEAST_CHARACTERS:
            pictured = any(_has_picture(page) for page in reader.pages[:20])
            raise DamagedFile(
                "image_only" if pictured else "no_text",
                f"has {len(texts)} pages and no text layer" + (", only pictures" if pictured else ""),
                "recognise its text first: ocrmypdf FILE.pdf OUT.pdf",
            )
    yield ReadRow({"title": title or file.path.stem, "text": text_of_pages(texts)}, number=0)


def _opened(pypdf: Any, stream: Any) -> Any:
    try:
        reader = pypdf.PdfReader(stream)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DamagedFile(
                "password", "wants a password", "save it without: qpdf --decrypt IN.pdf OUT.pdf"
            )
        num_pages = len(reader.pages)
    except DamagedFile:
        raise
    except pypdf.errors.DependencyError as error:
        raise DamagedFile("missing_package", f"is encrypted: {error}", "pip install cryptography") from None
    except Exception as error:  # on broken files pypdf raises whatever it stumbles over
        raise DamagedFile("broken", f"is a broken PDF: {_said(error)}", "try: qpdf IN.pdf OUT.pdf") from None
    if not 0 < num_pages <= MAX_PAGES:
        raise DamagedFile("broken", f"has {num_pages:,} pages", f"expected 1 to {MAX_PAGES:,}")
    return reader


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def _pages(reader: Any, file: SourceFile, notes: ReadNotes) -> Iterator[str]:
    bad: list[str] = []
    for index in range(len(reader.pages)):
        try:
            yield _text(reader.pages[index])
        except Exception as error:  # as above; the other pages may be sound
            bad.append(_said(error))
            notes.reject(Reject(file.origin, "bad_page", f"page {index + 1}: {_said(error)}"))
    if len(bad) == len(reader.pages):
        raise DamagedFile("broken", f"has no page that can be read: {bad[0]}", "try: qpdf IN.pdf OUT.pdf")


def _text(page: Any) -> str:
    """Upright text; stamps along the edge would land in mid-sentence. A turned page has no other."""
    return str(page.extract_text(orientations=(0,)) or page.extract_text())


def _title(reader: Any) -> str:
    """The title that the file gives itself, unless a program put a file name there."""
    try:
        title = " ".join(str((reader.metadata or {}).get("/Title") or "").split())
    except Exception:  # broken metadata is no reason to lose the text
        return ""
    is_name = title.lower().endswith((".doc", ".docx", ".tex", ".dvi", ".indd", ".pdf", ".qxd"))
    return "" if is_name or title.lower().startswith(("microsoft word -", "untitled")) else title[:200]


def _has_picture(page: Any) -> bool:
    try:
        objects = page["/Resources"]["/XObject"].get_object()
        return any(objects[name].get_object().get("/Subtype") == "/Image" for name in objects)
    except Exception:  # no resources, or broken ones
        return False
