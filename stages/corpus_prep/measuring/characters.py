"""What kind of character each code point is, as tables that compiled loops look up.

Made from Python's own Unicode tables, so that the loops call a letter or a space what `str` calls one.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_CODE_POINTS = 0x110000
SPACE, LETTER, WORD, MARK, DENSE, DIGIT, PUNCTUATION, TERMINAL, PLAIN, BREAK, DECIMAL = (
    1 << n for n in range(11)
)
"""White space; letter; letter or digit of any kind; combining mark; Han or kana (a word of its own); decimal
digit; punctuation; sentence end; no symbol; line break; decimal separator."""
SCRIPT_SHIFT = 16
SCRIPTS = ("other", "han", "kana", "hangul", "latin", "arabic", "cyrillic", "digits")
_RANGES = {
    "han": ((0x3005, 0x3007), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F)),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)),
    "latin": ((0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF)),
    "cyrillic": ((0x400, 0x52F),),
}
_COMMON_PUNCTUATION = ".,;:!?'\"()、。，；：？！،؛؟-_"
_DECIMAL_SEPARATORS = ".,،٫⎖⎗⎘"
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_CASED_UP_TO = 0x1F000
"""No character above this one has another case."""

#: datatrove's `PUNCTUATION` (utils/text.py, 0.10.1): with the sentence ends, what makes no word "plain".
_PUNCTUATION = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
_CONTROL_RANGES = ((0, 9), (11, 13), (13, 32), (127, 160))
#: datatrove's `TERMINAL_PUNCTUATION`: what ends a sentence in any script.
_TERMINAL = (
    "!.?։؝؞؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕៖៙៚᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᭽᭾᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼⹓⹔。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫"
    "﹒﹖﹗！．？｡𐩖𐩗𐽕𐽖𐽗𐽘𐽙𐾆𐾇𐾈𐾉𑁇𑁈𑂾𑂿𑃀𑃁𑅁𑅂𑅃𑇅𑇆𑇍𑇞𑇟𑈸𑈹𑈻𑈼𑊩𑑋𑑌𑗂𑗃𑗉𑗊𑗋𑗌𑗍𑗎𑗏𑗐𑗑𑗒𑗓𑗔𑗕𑗖𑗗𑙁𑙂𑜼𑜽𑜾𑥄𑥆𑩂𑩃𑪛𑪜𑱁𑱂𑻷𑻸𑽃𑽄𖩮𖩯𖫵𖬷𖬸𖭄𖺘𛲟𝪈"
)


class CharacterTables(NamedTuple):
    """One entry per code point."""

    flags: NDArray[np.uint32]
    """Sum of the constants above, and the number of the script above bit 16."""
    folded: NDArray[np.uint32]
    """The character without case."""
    simplified: NDArray[np.uint32]
    """The character without case and accents; 0 for an accent that stands alone."""


@lru_cache(maxsize=1)
def character_tables() -> CharacterTables:
    """The tables, 13 MB; made once, in a tenth of a second."""
    everything = np.arange(NUM_CODE_POINTS, dtype=np.uint32).view("<U1")
    letters, words = np.char.isalpha(everything), np.char.isalnum(everything)
    words[0] = letters[0] = False
    digits = np.char.isdecimal(everything)
    flags = LETTER * letters + WORD * words + DIGIT * digits
    _mark(flags, SPACE, np.flatnonzero(np.char.isspace(everything)))
    _mark(flags, MARK, _marks())
    for script in ("han", "kana"):
        for first, last in _RANGES[script]:
            flags[first : last + 1] |= np.where(words[first : last + 1], DENSE, 0)
    controls = [code for low, high in _CONTROL_RANGES for code in range(low, high)]
    _mark(flags, PUNCTUATION, [*map(ord, _PUNCTUATION + _TERMINAL), *controls])
    _mark(flags, TERMINAL, list(map(ord, _TERMINAL)))
    _mark(flags, BREAK, list(map(ord, _LINE_BREAKS)))
    _mark(flags, DECIMAL, list(map(ord, _DECIMAL_SEPARATORS)))
    flags |= np.where(flags & (WORD | SPACE), PLAIN, 0)
    _mark(flags, PLAIN, list(map(ord, _COMMON_PUNCTUATION)))
    flags |= _scripts(letters, digits) << SCRIPT_SHIFT
    return CharacterTables(flags.astype(np.uint32), _folded(), _simplified())


def _mark(flags: NDArray[np.int64], flag: int, codes: NDArray[np.int64] | list[int]) -> None:
    flags[codes] |= flag


def _marks() -> list[int]:
    """Combining marks; those above the cased planes are variation selectors."""
    codes = (*range(0x300, _CASED_UP_TO), *range(0xE0100, 0xE01F0))
    return [code for code in codes if unicodedata.category(chr(code))[0] == "M"]


def _scripts(letters: NDArray[np.bool_], digits: NDArray[np.bool_]) -> NDArray[np.int64]:
    scripts = np.zeros(NUM_CODE_POINTS, np.int64)
    for name, ranges in _RANGES.items():
        for first, last in ranges:
            part = slice(first, last + 1)
            scripts[part] = np.where(letters[part] | (name == "kana"), SCRIPTS.index(name), scripts[part])
    return np.where(digits, SCRIPTS.index("digits"), scripts)


def _folded() -> NDArray[np.uint32]:
    """`str.casefold` where that is one character, else `str.lower` if that is, else itself."""
    table = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    for code in range(_CASED_UP_TO):
        character = chr(code)
        for form in (character.casefold(), character.lower()):
            if len(form) == 1:
                table[code] = ord(form)
                break
    return table


def _simplified() -> NDArray[np.uint32]:
    """First character of the lower case's canonical decomposition; hangul syllables stay whole."""
    table = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    for code in (*range(0xAC00), *range(0xF900, _CASED_UP_TO), *range(0x2F800, 0x2FA20)):
        table[code] = ord(unicodedata.normalize("NFD", chr(code).lower())[0])
    marks = [code for code in _marks() if unicodedata.category(chr(code)) == "Mn"]
    table[marks] = 0
    return table
