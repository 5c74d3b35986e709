"""Language by script: free, deterministic, and enough to choose thresholds and to report by.

Chinese, Japanese and Korean share characters, so kana and hangul are looked for before Han is called Chinese.
Latin script is English only if English function words say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
        return latin_language(sample) if _WORD.search(sample) else "other"
    language, _ = language_of_script({name: len(p.findall(sample)) for name, p in _SCRIPTS.items()})
    return language or latin_language(sample)


_BY_SCRIPT = {"han": "zh", "kana": "ja", "hangul": "ko", "arabic": "ar", "cyrillic": "ru", "foreign": "other"}


def language_of_script(counts: Mapping[str, int]) -> tuple[str, float]:
    """(language, share of its script) by letters of each script; "" where it is Latin, which tells little.

    counts: han, kana, hangul, arabic, cyrillic, latin, and maybe `foreign`: letters of any other script.
    """
    # One Han character says about as much as three letters of an alphabet.
    weighted: dict[str, float] = {**counts, "latin": counts["latin"] / 3}
    if "foreign" in counts:
        weighted["foreign"] = counts["foreign"] / 3
    total = sum(weighted.values())
    if total == 0:
        return "other", 0.0
    han, kana = weighted["han"], weighted["kana"]
    if kana > 0.1 * (han + kana) and kana > 0.2 * weighted["latin"]:
        return "ja", (han + kana) / total
    script = max(weighted, key=lambda name: (weighted[name], name))
    return _BY_SCRIPT.get(script, ""), weighted[script] / total


def _sample(text: str) -> str:
    """Beginning, middle and end: headers are often in another language than the text."""
    if len(text) <= SAMPLE_CHARACTERS:
        return text
    third, middle = SAMPLE_CHARACTERS // 3, len(text) // 2
    return text[:third] + text[middle : middle + third] + text[-third:]


def latin_language(sample: str) -> str:
    """en, code or other, by signs and function words; a sample with too few words counts as English."""
    code_share = len(_CODE_SIGNS.findall(sample)) / len(sample)
    if code_share >= SURE_CODE_SHARE:
        return "code"
    words = _WORD.findall(sample.lower())
    english = sum(word in _ENGLISH for word in words)
    if len(words) < MIN_WORDS_TO_TELL or english >= MIN_ENGLISH_SHARE * len(words):
        return "en"
    return "code" if code_share >= MIN_CODE_SHARE else "other"
