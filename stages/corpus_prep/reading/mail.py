"""Letters (.eml): the subject as the title, the body as the text. Addresses in the head are left out."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from email.message import MIMEPart

from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.json_files import whole
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import opened

MAX_LETTER_BYTES = 64 << 20


def read_eml(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """The plain text of a letter, or its HTML where it has no other; attachments are left out."""
    with opened(file, notes) as stream:
        data = whole(stream, MAX_LETTER_BYTES, "save it without its attachments")
    letter = email.message_from_bytes(data, policy=email.policy.default)
    try:
        body = letter.get_body(("plain", "html"))
        text = _text(body) if body is not None else ""
    except (LookupError, ValueError, AssertionError) as error:
        raise DamagedFile("broken", f"is no letter that can be read: {error}", "save it again") from None
    if not text.strip():
        raise DamagedFile("no_text", "holds no text, perhaps pictures", "leave it out")
    title = " ".join(str(letter.get("Subject") or "").split())[:200]
    yield ReadRow({"title": title or file.path.stem, "text": text.strip("\n") + "\n"}, number=0)


def _text(body: MIMEPart) -> str:
    content = str(body.get_content()).replace("\r\n", "\n")
    if body.get_content_type() != "text/html":
        return content
    from stages.corpus_prep.reading.web_pages import body_markdown, parsed_html

    tree = parsed_html(content)
    return body_markdown(tree) if tree is not None else ""
