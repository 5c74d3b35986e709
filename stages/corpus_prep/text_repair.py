"""Unicode and encoding repair; every change is named, so that a reader can see what was done to a text.

Normal form is NFC, never NFKC: NFKC turns Chinese punctuation into ASCII and destroys it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import ftfy

#: UTF-8 read as Windows-1252 or Latin-1. Cheap to look for; ftfy, which mends it, is 1000 times slower.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf\u201a-\u203a\u20ac]|\u00e2\u20ac|\u00ef\u00bb\u00bf|[\u0080-\u009f]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: Zero-width space, word joiner, byte order mark, soft hyphen. Joiners (U+200C, U+200D) carry meaning in
#: Persian, in Indic scripts and in emoji, and stay.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
#: Overrides of the writing direction can make a text read otherwise than it is stored.
_BIDI_OVERRIDES = re.compile("[\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANK_LINES = re.compile(r"\n{4,}")
_TRAILING_SPACE = re.compile(r"[ \t\u3000]+(?=\n|\Z)")


#: In the order in which they are done. Batches name them by bits in this order: append, never reorder.
REPAIRS = (
    "lone_surrogates",
    "mojibake",
    "line_ends",
    "control_characters",
    "invisible_characters",
    "direction_overrides",
    "nfc",
    "white_space",
    "traditional_characters",  # by `simplify_chinese`, where the user asks for it
    "c4_lines",  # by C4's line edits, where the filters hold C4's
)


@dataclass(frozen=True)
class Repaired:
    """The text, and the names of the repairs that changed it."""

    text: str
    repairs: tuple[str, ...]


def repair_text(text: str) -> Repaired:
    """Mend one text. Pure: the same text always gives the same result, and a repaired text stays as it is."""
    repairs: set[str] = set()
    before = None
    # What is taken out may bring together what is mojibake only now.
    while text != before and (before is None or _MOJIBAKE.search(text)):
        before = text
        text, done = _repaired_once(text)
        repairs.update(done)
    return Repaired(text, tuple(name for name in REPAIRS if name in repairs))


def _repaired_once(text: str) -> tuple[str, list[str]]:
    repairs: list[str] = []

    def changed(name: str, new: str) -> None:
        nonlocal text
        if new != text:
            repairs.append(name)
            text = new

    if _SURROGATES.search(text):
        changed("lone_surrogates", without_surrogates(text))
    if _MOJIBAKE.search(text):
        changed("mojibake", ftfy.fix_encoding(text))
    changed("line_ends", _LINE_ENDS.sub("\n", text))
    changed("control_characters", _CONTROLS.sub("", text))
    changed("invisible_characters", _INVISIBLE.sub("", text))
    changed("direction_overrides", _BIDI_OVERRIDES.sub("", text))
    if not text.isascii():
        changed("nfc", unicodedata.normalize("NFC", text))
    changed("white_space", _BLANK_LINES.sub("\n\n\n", _TRAILING_SPACE.sub("", text)).strip("\n"))
    return text, repairs


def without_surrogates(text: str) -> str:
    """Halves of UTF-16 pairs put together, single ones as U+FFFD: JSON may hold them, and UTF-8 may not."""
    try:
        text.encode()  # ten times as fast as looking for them
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def decode_bytes(data: bytes) -> tuple[str, str]:
    """(text, encoding) of bytes whose encoding nobody has told us.

    Tried in this order: byte order marks, UTF-8, UTF-8 with a few broken bytes, UTF-16 without a mark,
    gb18030, Windows-1252 (which takes anything). The name says "(repaired)" where bytes had to be replaced.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return _decoded(data, encoding)
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    if guess := _utf16_without_mark(data):
        return _decoded(data, guess)
    text = data.decode("utf-8", "replace")
    sound = sum(character > "\x7f" and character != "\ufffd" for character in text)
    broken = text.count("\ufffd")
    if broken * 20 <= sound:
        return text, "utf-8 (repaired)"
    if _looks_like_gb18030(data):
        return _decoded(data, "gb18030")
    return data.decode("cp1252", "replace"), "cp1252"


def _decoded(data: bytes, encoding: str) -> tuple[str, str]:
    try:
        return data.decode(encoding), encoding
    except UnicodeDecodeError:
        return data.decode(encoding, "replace"), f"{encoding} (repaired)"


def _utf16_without_mark(data: bytes) -> str:
    """ASCII in UTF-16 has a zero in every second byte."""
    sample = data[:4096]
    zeros_even, zeros_odd = sample[0::2].count(0), sample[1::2].count(0)
    half = max(1, len(sample) // 2)
    if zeros_odd > 0.3 * half and zeros_even < 0.05 * half:
        return "utf-16-le"
    return "utf-16-be" if zeros_even > 0.3 * half and zeros_odd < 0.05 * half else ""


_GB_PAIR = re.compile(rb"[\xa1-\xf7][\xa1-\xfe]")
_HIGH_BYTE = re.compile(rb"[\x80-\xff]")


def _looks_like_gb18030(data: bytes) -> bool:
    """Chinese bytes come in pairs of the GB 2312 range; accented Latin letters stand alone."""
    high = len(_HIGH_BYTE.findall(data))
    return high > 0 and 2 * len(_GB_PAIR.findall(data)) >= 0.9 * high
