"""Find sentences that say something: what a person could have typed as a question about the text.

Chunking moves lines; here a sentence goes on over a line break, because docstrings and RFC-like texts are
wrapped by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stages.whitebox.bm25 import split_terms

_PARAGRAPH = re.compile(r"\S.*?(?=\n[ \t]*\n|\Z)", re.DOTALL)
_SENTENCE = re.compile(r"\S.*?(?:[.!?…][\"')\]]*(?=\s)|[。！？；][”’」』）]*|\Z)", re.DOTALL)
# Headings, fences, prompts, fields and list bullets open a paragraph that is no prose, or not the one about
# the whole.
_NOT_PROSE = re.compile(
    r"#|```|~~~|>>>|\.\. |:\w|@|[-*+|=<{}\[(]|\w+ *[=:](?!\w)|class |def |import |from \w+ import "
)
_RULED = re.compile(r"^[=\-~^*+|]{3,}[ \t]*$", re.MULTILINE)
_FEWEST_TERMS, _MOST_TERMS = 5, 60
_PARAGRAPHS_TO_TRY = 12


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Borders of all sentences in `text[start:end]`, in order; between them is nothing but white space."""
    end = len(text) if end is None else end
    spans: list[tuple[int, int]] = []
    for paragraph in _PARAGRAPH.finditer(text, start, end):
        spans += [match.span() for match in _SENTENCE.finditer(text, paragraph.start(), paragraph.end())]
    return spans


def summary_span(text: str) -> tuple[int, int] | None:
    """Borders of the first sentence of prose: in documentation and encyclopedias the one that says what it
    is.

    None where the first paragraphs hold no prose sentence of 5 to 60 terms.
    """
    for start, end in _prose_paragraphs(text):
        match = _SENTENCE.match(text, start, end)
        if match and _reads_like_prose(match[0]):
            return match.span()
    return None


def _prose_paragraphs(text: str) -> Iterator[tuple[int, int]]:
    for number, match in enumerate(_PARAGRAPH.finditer(text)):
        if number == _PARAGRAPHS_TO_TRY:
            return
        line_start = text.rfind("\n", 0, match.start()) + 1
        indented = match.start() - line_start >= 4
        if not indented and not _NOT_PROSE.match(match[0]) and not _RULED.search(match[0]):
            yield match.span()


def _reads_like_prose(sentence: str) -> bool:
    """Enough terms for a question, not a whole page of them, and letters rather than signs."""
    letters = sum(char.isalpha() or char.isspace() for char in sentence)
    return letters >= 0.8 * len(sentence) and _FEWEST_TERMS <= len(split_terms(sentence)) <= _MOST_TERMS


def without_name(sentence: str, title: str) -> str:
    """`sentence` without the title itself: a question by somebody who does not know what the thing is called.

    >>> without_name("Socket objects: see socket.socket for more.", "socket.socket")
    'Socket objects: see for more.'
    """
    if title.strip():
        name = re.escape(title.strip())
        # Chinese has no borders between words, so there the name counts wherever it stands.
        whole = rf"(?<![\w.]){name}(?!\w|\.\w)" if title.isascii() else name
        sentence = re.sub(whole, " ", sentence, flags=re.IGNORECASE)
    return " ".join(sentence.split())
