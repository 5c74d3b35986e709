"""Lines of PDF pages as running text: page heads and feet out, paragraphs whole, hyphens mended.

A line belongs to the one before it if that one is full, or ends in the middle of a sentence. What is full is
told by the lines around, because columns and pages have widths of their own. Where it is not clear, the line
end stays: a line too many is a smaller harm than two things glued into a sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

#: Ligatures, and the radicals (U+2F00) that some programs write for the characters that look like them.
_SHAPES = {
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xFB00, 0xFB07), *range(0x2F00, 0x2FD6))
}
_PAGE_NUMBER = re.compile(
    r"\W*(?:page |p\. ?|第 ?)?(?:\d{1,4}|[ivxlc]{1,7})(?: ?(?:of|/|页|頁) ?\d*)?\W*", re.IGNORECASE
)
_ITEM = re.compile(
    r"(?:[•●○▪■◦‣·–—*-]|\(?[a-z0-9]{1,3}[.)]|\[\d{1,3}\]|[①-⑳]|[QA]:)(?=\s|$)|[•●○▪■◦‣]", re.IGNORECASE
)
_SECTION = re.compile(r"(?:\d{1,2}(?:\.\d{1,2}){0,3}\.?|[IVX]{1,4}\.|[A-Z]\.\d*) +[^\W\d_]|第.{1,4}[章节]")
_ENDS = tuple('.!?:;。！？：；…”’")）')
_CLOSES = tuple(".!?。！？…")
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
_CJK_SPACE = re.compile(f"(?<={_CJK.pattern}) (?={_CJK.pattern})")
_FOOT_NOTE = re.compile(r"(?:\d{1,2}|[∗*†‡§])[^\W\d_]")
_ADDRESS_END = re.compile(r"(?:https?://|www\.|[\w.]+@)\S+$")
_NUMBER = re.compile(r"[-+]?[\d.,]*\d[%MK]?")
#: Words that go with a hyphen before others far more often than they are the beginning of a longer word.
_BEFORE_HYPHEN = frozenset(
    [
        "all",
        "cross",
        "data",
        "end",
        "ex",
        "five",
        "four",
        "full",
        "half",
        "hand",
        "high",
        "large",
        "long",
        "low",
        "mid",
        "multi",
        "non",
        "one",
        "open",
        "real",
        "self",
        "semi",
        "short",
        "single",
        "six",
        "small",
        "state",
        "task",
        "three",
        "time",
        "top",
        "two",
        "user",
        "vice",
        "well",
        "word",
        "zero",
    ]
)
_HYPHENATED = re.compile(r"([^\W\d_]{2,})[-\u2010\u00ad]$")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
FURNITURE_LINES = 2
LEAST_REPEATS = 3
#: A head stands on every page, or on every second one, or only through a chapter.
REPEATED_SHARE = 0.25
WINDOW = 3


def text_of_pages(pages: Sequence[str]) -> str:
    """Running text of the pages' lines; ends with a line end."""
    lines_of_pages = [[_cleaned(line) for line in page.translate(_SHAPES).split("\n")] for page in pages]
    lines_of_pages = _without_furniture([[line for line in lines if line] for lines in lines_of_pages])
    lines = [line for page in lines_of_pages for line in page]
    starts = {sum(len(page) for page in lines_of_pages[:index]) for index in range(1, len(lines_of_pages))}
    if _is_broken_up(lines):
        return _rejoined(lines) + "\n"
    words = Counter(word.lower() for line in lines for word in _WORD.findall(_HYPHENATED.sub("", line)))
    return "\n".join(_paragraphs(lines, starts, words)).strip("\n") + "\n"


def _cleaned(line: str) -> str:
    line = re.sub(r"[ \t\u00a0]+", " ", line.replace("\x00", "")).strip()
    spaced = len(_CJK_SPACE.findall(line))
    return _CJK_SPACE.sub("", line) if spaced > 2 and spaced > 0.4 * len(_CJK.findall(line)) else line


def _without_furniture(pages: list[list[str]]) -> list[list[str]]:
    """Pages without the lines that stand at the top or foot of many of them, and without page numbers."""
    tops, feet = (
        Counter(key for i, page in enumerate(pages) for key in {_key(line, i) for line in page[edge]})
        for edge in (slice(FURNITURE_LINES), slice(-FURNITURE_LINES, None))
    )
    least = max(LEAST_REPEATS, REPEATED_SHARE * len(pages))
    several = len(pages) > 1
    kept = []
    for index, page in enumerate(pages):
        below = _stripped(page, index, tops, least) if several else page
        kept.append(_stripped(below[::-1], index, feet, least)[::-1] if several else page)
    return kept


def _key(line: str, index: int) -> str:
    """What is the same on several pages: the words, and how far the last number is from the page's own."""
    numbers = re.findall(r"\d{1,4}", line)
    words = re.sub(r"\d+", "#", line.lower())
    return f"{words} {int(numbers[-1]) - index}" if numbers else words


def _stripped(page: list[str], index: int, seen: Counter[str], least: float) -> list[str]:
    """The page without its first lines, if they are furniture; a head with a page number may be rare."""
    kept = list(page)
    for _ in range(FURNITURE_LINES):
        if not kept:
            break
        key = _key(kept[0], index)
        is_number = len(kept) > 3 and _PAGE_NUMBER.fullmatch(kept[0])
        if is_number or seen[key] >= (LEAST_REPEATS if "#" in key else least):
            kept.pop(0)
    return kept


def _is_broken_up(lines: list[str]) -> bool:
    """Whether nearly every word has a line of its own, as some programs draw them."""
    single = sum(" " not in line and not _CJK.search(line) for line in lines)
    return len(lines) > 50 and single > 0.9 * len(lines) and sum(map(len, lines)) < 12 * len(lines)


def _rejoined(lines: list[str]) -> str:
    text = " ".join(lines)
    return re.sub(r" (?=[•●○▪■◦‣] )", "\n", text)


def _width(line: str) -> int:
    """Length in half-width characters."""
    return len(line) + len(_CJK.findall(line))


def _paragraphs(lines: list[str], starts: set[int], words: Counter[str]) -> list[str]:
    """Lines joined into paragraphs, with a blank line after each that was joined of several."""
    widths = [_width(line) for line in lines]
    out: list[str] = []
    held, joined = "", 0
    for index, line in enumerate(lines):
        if held and _continues(lines, widths, index, index in starts):
            held = _glued(held, line, words)
            joined += 1
            continue
        if held:
            out += [held, ""] if joined else [held]
        if joined == 0 and out and out[-1] and _SECTION.match(line):
            out.append("")
        held, joined = line, 0
    return [*out, held]


def _continues(lines: list[str], widths: list[int], index: int, new_page: bool) -> bool:
    """Whether line `index` goes on with the sentence or paragraph of the line before it."""
    before, line = lines[index - 1], lines[index]
    if _HYPHENATED.search(before) and line[:1].islower():
        return True
    if _begins_anew(before, line):
        return False
    around = widths[max(0, index - 1 - WINDOW) : index + WINDOW]
    full = widths[index - 1] / max(1, *around)
    if new_page:
        return not before.endswith(_ENDS) and (line[:1].islower() or (bool(_CJK.match(line)) and full > 0.9))
    if before.endswith(_CLOSES):
        return full > 0.85 and not (line[:1].isupper() and full < 0.95)
    if line[:1].islower() and full > 0.5:
        return True
    return full > 0.75 and not _SECTION.match(before) and widths[index - 1] > 30


def _begins_anew(before: str, line: str) -> bool:
    """Whether a line is an item, a foot note, a row of a table or a heading, or comes after one."""
    begins = _ITEM.match(line) or _FOOT_NOTE.match(line) or (_SECTION.match(line) and before.endswith(_ENDS))
    return bool(begins or _ADDRESS_END.search(before) or _is_row(before) or _is_row(line))


def _is_row(line: str) -> bool:
    """Whether a line is a row of a table: several numbers, and few words between."""
    parts = line.split()
    numbers = sum(_NUMBER.fullmatch(part) is not None for part in parts)
    return numbers >= 3 and numbers >= 0.3 * len(parts)


def _glued(held: str, line: str, words: Counter[str]) -> str:
    match = _HYPHENATED.search(held)
    if match and line[:1].islower():
        return held[:-1] + line if _is_one_word(held, match[1], line, words) else held + line
    no_space = (_CJK.match(line) and _CJK.match(held[-1])) or (match and line[:1].isalnum())
    between = "" if no_space else " "
    return held + between + line


def _is_one_word(held: str, first: str, line: str, words: Counter[str]) -> bool:
    """Whether the hyphen at a line end only divided a word: the rest of the text tells, else it did.

    In `state-of-the-` + `art` the hyphen stays, because the word has others.
    """
    rest = _WORD.match(line)
    second = rest[0].split("-")[0] if rest else ""
    as_one, hyphenated = words[(first + second).lower()], words[f"{first}-{second}".lower()]
    if as_one or hyphenated:
        return as_one >= hyphenated
    return first.lower() not in _BEFORE_HYPHEN and not re.search(r"[^\W\d_]-[^\W\d_]+-$", held)
