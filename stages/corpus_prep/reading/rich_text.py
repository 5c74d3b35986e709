"""Rich text (.rtf 1.9): its paragraphs, without fonts, colours, pictures and page heads."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.json_files import whole
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import opened

MAX_RTF_BYTES = 64 << 20
_TOKEN = re.compile(
    rb"\\'([0-9a-fA-F]{2})|\\([a-z]{1,32})(-?\d{1,10})? ?|\\(.)|([{}])|[\r\n]+|([^\\{}\r\n]+)", re.DOTALL
)
#: Groups that hold no text of the document.
_NO_TEXT = frozenset(
    b"fonttbl colortbl stylesheet info pict object header headerl headerr headerf footer footerl footerr"
    b" footerf fldinst listtable listoverridetable rsidtbl generator themedata colorschememapping datastore"
    b" xmlnstbl latentstyles nonshppict filetbl revtbl".split()
)
_SIGNS = {
    **dict.fromkeys((b"par", b"line", b"row", b"sect", b"page"), "\n"),
    **{b"tab": "\t", b"cell": "\t", b"emdash": "—", b"endash": "–", b"bullet": "•"},
    **{b"lquote": "‘", b"rquote": "’", b"ldblquote": "“", b"rdblquote": "”"},
}


def read_rtf(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """One document per file."""
    with opened(file, notes) as stream:
        data = whole(stream, MAX_RTF_BYTES, "save it as .docx")
    if not data.lstrip().startswith(b"{\\rtf"):
        raise DamagedFile("broken", "is no rich text: it does not begin with {\\rtf", "name it as what it is")
    text = "\n\n".join(line.strip() for line in rtf_text(data).split("\n") if line.strip())
    if not text:
        raise DamagedFile("no_text", "holds no text, perhaps pictures", "leave it out")
    yield ReadRow({"title": file.path.stem, "text": text + "\n"}, number=0)


def rtf_text(data: bytes) -> str:
    """Plain text of rich text; paragraphs end with a line end."""
    reader = _Reader(_codepage(data))
    for match in _TOKEN.finditer(data):
        reader.take(*match.groups())
    return reader.text()


def _codepage(data: bytes) -> str:
    match = re.search(rb"\\ansicpg(\d{3,5})", data[:2000])
    return f"cp{match[1].decode()}" if match else "cp1252"


class _Reader:
    """What is known while tokens come: a stack of (is text, fallback characters per \\u)."""

    def __init__(self, codepage: str) -> None:
        self._codepage = codepage
        self._stack: list[tuple[bool, int]] = []
        self._is_text, self._fallback = True, 1
        self._to_skip = 0
        self._bytes = bytearray()
        self._parts: list[str] = []

    def take(
        self, code: bytes | None, word: bytes | None, number: bytes | None, sign: bytes | None,
        brace: bytes | None, plain: bytes | None,
    ) -> None:  # fmt: skip
        """One token: a byte as hex, a control word with its number, an escaped sign, a brace, or text."""
        if brace == b"{":
            self._stack.append((self._is_text, self._fallback))
        elif brace == b"}":
            self._is_text, self._fallback = self._stack.pop() if self._stack else (True, 1)
            self._to_skip = 0
        elif word:
            self._control(word, int(number or 0))
        elif sign is not None:
            self._is_text = self._is_text and sign != b"*"  # \* opens a group that a reader may pass over
            self._add(sign if sign in b"{}\\" else {b"~": b" ", b"_": b"-"}.get(sign, b""))
        elif code:
            self._add(bytes((int(code, 16),)))
        elif plain:
            self._add(plain)

    def _control(self, word: bytes, number: int) -> None:
        if word in _NO_TEXT:
            self._is_text = False
        elif word == b"uc":
            self._fallback = number
        elif word == b"u" and self._is_text:
            self._say(chr(number % 65536))
            self._to_skip = self._fallback
        elif word in _SIGNS and self._is_text:
            self._say(_SIGNS[word])

    def _add(self, data: bytes) -> None:
        skipped = min(self._to_skip, len(data))
        self._to_skip -= skipped
        if self._is_text:
            self._bytes += data[skipped:]

    def _say(self, text: str) -> None:
        self._flush()
        self._parts.append(text)

    def _flush(self) -> None:
        try:
            self._parts.append(self._bytes.decode(self._codepage, "replace"))
        except LookupError:
            self._parts.append(self._bytes.decode("cp1252", "replace"))
        self._bytes.clear()

    def text(self) -> str:
        """Everything that was said; characters outside the first plane come as two halves."""
        self._flush()
        return "".join(self._parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
