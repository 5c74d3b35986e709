"""Language by script: free, deterministic, and enough to choose thresholds and to report by.

Chinese, Japanese and Korean share characters, so kana and hangul are looked for before Han is called Chinese.
Latin script is English only if English function words say so.
"""

from __future__ import annotations

import re

SAMPLE_CHARACTERS = 4000
_SCRIPTS = {
    "han": re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"),
    "kana": re.compile("[\u3040-\u30ff]"),
    "hangul": re.compile("[\uac00-\ud7af]"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
}
_WORD = re.compile("[A-Za-z\u00c0-\u024f]+")
# fmt: off
_ENGLISH = frozenset((
    "the", "of", "and", "to", "in", "is", "for", "a", "that", "with", "as", "on", "by", "are", "be", "this",
    "it", "from", "or", "an", "if", "not", "can", "return", "returns", "which", "when", "at", "was", "you",
    "has", "have",
))
# fmt: on
MIN_WORDS_TO_TELL = 20
MIN_ENGLISH_SHARE = 0.03
_CODE_SIGNS = re.compile(r"[{}();=<>\[\]_]")
MIN_CODE_SHARE = 0.06
SURE_CODE_SHARE = 0.2
"""So many signs make code of a text even if its words are English: `for`, `in`, `is`, `not` are keywords."""


def detect_language(text: str) -> str:
    """One of en, zh, ja, ko, ar, ru, code, other."""
    sample = _sample(text)
    if sample.isascii():
        return _latin_language(sample) if _WORD.search(sample) else "other"
    counts = {name: len(pattern.findall(sample)) for name, pattern in _SCRIPTS.items()}
    letters = sum(counts.values())
    if letters == 0:
        return "other"
    # One Han character says about as much as three Latin letters.
    weighted = counts | {"latin": counts["latin"] / 3}
    if (
        weighted["kana"] > 0.1 * (weighted["han"] + weighted["kana"])
        and weighted["kana"] > 0.2 * weighted["latin"]
    ):
        return "ja"
    script = max(weighted, key=lambda name: (weighted[name], name))
    by_script = {"han": "zh", "kana": "ja", "hangul": "ko", "arabic": "ar", "cyrillic": "ru"}
    return by_script[script] if script in by_script else _latin_language(sample)


def _sample(text: str) -> str:
    """Beginning, middle and end: headers are often in another language than the text."""
    if len(text) <= SAMPLE_CHARACTERS:
        return text
    third, middle = SAMPLE_CHARACTERS // 3, len(text) // 2
    return text[:third] + text[middle : middle + third] + text[-third:]


def _latin_language(sample: str) -> str:
    code_share = len(_CODE_SIGNS.findall(sample)) / len(sample)
    if code_share >= SURE_CODE_SHARE:
        return "code"
    words = _WORD.findall(sample.lower())
    english = sum(word in _ENGLISH for word in words)
    if len(words) < MIN_WORDS_TO_TELL or english >= MIN_ENGLISH_SHARE * len(words):
        return "en"
    return "code" if code_share >= MIN_CODE_SHARE else "other"
