"""The filter rules: each a name, what is measured, how it is compared, with what, and who says so.

A rule drops a document whose measure lies on the wrong side of its threshold. Rules of several sets may
stand for the same reason with other thresholds (`fineweb2_zh.top_2_gram` and
`gopher_repetition.top_2_gram`); the reason gives the bit in the mask that `judging.judge` returns, so a bit
means the same for every source and language.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from stages.corpus_prep.measuring.columns import COLUMNS, DUPLICATE_SIZES, TOP_SIZES
from stages.runtime.errors import UserError, did_you_mean

GOPHER = "Gopher, Rae et al. 2021, arXiv:2112.11446, table A1; as in datatrove 0.10.1"
C4 = "C4, Raffel et al. 2020, arXiv:1910.10683; as in datatrove 0.10.1"
FINEWEB = "FineWeb, Penedo et al. 2024, arXiv:2406.17557; as in datatrove 0.10.1"
FINEWEB2 = "FineWeb2, Penedo et al. 2025, arXiv:2506.20920; cmn_Hani thresholds, words by jieba there"
OWN = "Gopher's kinds of rules, wider: documentation is full of short lines, symbols and code"

COMPARISONS: dict[str, Callable] = {"<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Rule:
    """Drops a document whose `measure` compares so with the threshold."""

    name: str
    """SET.RULE, by which users switch it and move its threshold."""
    measure: str
    """A column."""
    comparison: str
    """< or >, between the measure and the threshold, drops."""
    threshold: float
    reason: str
    """SET.RULE of the reason that is given."""
    source: str
    per: str = ""
    """A column to divide by; where that is 0, the rule does not drop. Without: the count itself."""
    at_least: tuple[str, int] | None = None
    """(column, least number): the rule is for documents with at least so many."""

    def __str__(self) -> str:
        measured = f"{self.measure} / {self.per}" if self.per else self.measure
        only = f" where {self.at_least[0]} >= {self.at_least[1]}" if self.at_least else ""
        return f"{self.name}: {measured} {self.comparison} {self.threshold:g}{only}"


def _rules(
    set_name: str, source: str, table: str, reasons: str = "", only: Mapping | None = None
) -> tuple[Rule, ...]:
    """Rules of lines `RULE: MEASURE [/ PER] COMPARISON THRESHOLD`; reasons: the set that gives them."""
    rules = []
    for line in filter(str.strip, table.splitlines()):
        name, _, told = line.strip().partition(": ")
        measured, comparison, threshold = told.rsplit(" ", 2)
        measure, _, per = measured.partition(" / ")
        reason, at_least = f"{reasons or set_name}.{name}", (only or {}).get(name)
        full, limit = f"{set_name}.{name}", float(threshold)
        rules.append(Rule(full, measure, comparison, limit, reason, source, per, at_least))
    return tuple(rules)


_GOPHER_QUALITY = """
    short_document: plain_words < 50
    long_document: plain_words > 100000
    short_words: plain_word_characters / plain_words < 3
    long_words: plain_word_characters / plain_words > 10
    hashes: hashes / words > 0.1
    ellipses: ellipses / words > 0.1
    bullet_lines: bullet_lines / broken_lines > 0.9
    ellipsis_lines: ellipsis_lines / broken_lines > 0.3
    letter_words: letter_words / words < 0.8
    stop_words: stop_words_en < 2
"""
_GOPHER_REPETITION = """
    empty: characters < 1
    duplicate_paragraphs: duplicate_paragraphs / paragraphs > 0.3
    duplicate_paragraph_characters: duplicate_paragraph_characters / characters > 0.2
    duplicate_lines: duplicate_lines / lines > 0.3
    duplicate_line_characters: duplicate_line_characters / characters > 0.2
"""
_TOP, _DUPLICATE = (0.20, 0.18, 0.16), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
_FINEWEB = """
    blank: nonblank_lines < 1
    line_punctuation: terminal_lines / nonblank_lines < 0.12
    short_lines: short_lines / nonblank_lines > 0.67
    duplicate_characters: duplicate_nonblank_characters / characters_without_newlines > 0.01
    newlines: newlines / words > 0.3
"""


def _runs(top: Iterable[float], duplicate: Iterable[float]) -> str:
    """Rules for the most frequent runs of 2 to 4 words and for repeated ones of 5 to 10."""
    sizes = [("top", n, share) for n, share in zip(TOP_SIZES, top, strict=True)]
    sizes += [("duplicate", n, share) for n, share in zip(DUPLICATE_SIZES, duplicate, strict=True)]
    return "".join(
        f"{kind}_{n}_gram: {kind}_{n}_gram_characters / characters > {at}\n" for kind, n, at in sizes
    )


def _c4(columns: str) -> str:
    return f"""
    lorem_ipsum: {columns}lorem_lines > 0
    curly_bracket: {columns}curly_lines > 0
    few_sentences: {columns}sentences < 5
"""


def _documentation(set_name: str, **at: float) -> tuple[Rule, ...]:
    """The rules for documentation; a document of glued words is dropped as one of long words."""
    table = """
    too_short: visible_characters < {characters}
    broken_characters: replacement_characters / visible_characters > 0.01
    no_letters: letters / visible_characters < {letters}
    symbol_ratio: symbols / visible_characters > {symbols}
    long_words: word_characters / words > {mean_word}
    glued_words: glued_word_characters / visible_characters > 0.2
    duplicate_lines: duplicate_stripped_characters / stripped_characters > {lines}
    repeated_ngrams: repeated_8_grams / 8_grams > {runs}
"""
    only = {"duplicate_lines": ("nonblank_lines", 8), "repeated_ngrams": ("words", 47)}
    rules = _rules(set_name, OWN, table.format(**at), "documentation", only)
    glued = f"{set_name}.glued_words"
    return tuple(
        dataclasses.replace(rule, reason="documentation.long_words") if rule.name == glued else rule
        for rule in rules
    )


_CHINESE_QUALITY = """
    short_document: plain_words < 50
    long_document: plain_words > 100000
    short_words: plain_word_characters / plain_words < 1
    long_words: plain_word_characters / plain_words > 5
    hashes: hashes / words > 0.1
    ellipses: ellipses / words > 0.1
    bullet_lines: bullet_lines / broken_lines > 0.9
    ellipsis_lines: ellipsis_lines / broken_lines > 0.3
    letter_words: letter_words / words < 0.735
    stop_words: stop_words_zh < 2
"""
_CHINESE_REPETITION = """
    empty: characters < 1
    duplicate_lines: duplicate_lines / lines > 0.287
"""
_CHINESE_LINES = """
    blank: nonblank_lines < 1
    line_punctuation: terminal_lines / nonblank_lines < 0.106
    duplicate_characters: duplicate_nonblank_characters / characters_without_newlines > 0.1
    newlines: newlines / words > 0.178
"""

_CHINESE_RUNS = _runs((0.256, 0.201, 0.171), (0.198, 0.182, 0.167, 0.154, 0.14, 0.127))

RULE_SETS: dict[str, tuple[Rule, ...]] = {
    "gopher_quality": _rules("gopher_quality", GOPHER, _GOPHER_QUALITY),
    "gopher_repetition": _rules("gopher_repetition", GOPHER, _GOPHER_REPETITION + _runs(_TOP, _DUPLICATE)),
    "c4": _rules("c4", C4, _c4("c4_terminal_")),
    "c4_fineweb": _rules("c4_fineweb", f"{C4}, without terminal punctuation", _c4("c4_"), "c4"),
    "fineweb": _rules("fineweb", FINEWEB, _FINEWEB),
    "fineweb2_zh": (
        *_rules("fineweb2_zh", FINEWEB2, _CHINESE_QUALITY, "gopher_quality"),
        *_rules("fineweb2_zh", FINEWEB2, _CHINESE_REPETITION + _CHINESE_RUNS, "gopher_repetition"),
        *_rules("fineweb2_zh", FINEWEB2, _CHINESE_LINES, "fineweb"),
    ),
    "documentation": _documentation(
        "documentation",
        characters=40,
        mean_word=14,
        symbols=0.45,
        letters=0.35,
        lines=0.5,
        runs=0.6,
    ),
    "documentation_zh": _documentation(
        "documentation_zh",
        characters=20,
        mean_word=4,
        symbols=0.35,
        letters=0.35,
        lines=0.5,
        runs=0.6,
    ),
    "documentation_code": _documentation(
        "documentation_code",
        characters=40,
        mean_word=20,
        symbols=0.6,
        letters=0.25,
        lines=0.6,
        runs=0.7,
    ),
}
"""`documentation_zh` is for Japanese too."""

REASONS: tuple[str, ...] = (
    *dict.fromkeys(
        rule.reason
        for name in ("documentation", "gopher_quality", "gopher_repetition", "c4", "fineweb")
        for rule in RULE_SETS[name]
    ),
    *("low_language_score", "listed_url", "listed_phrase", "high_perplexity", "low_quality_score"),
)
"""The reason of each bit of a mask. New ones go to the end, so that stored masks keep their meaning."""

#: Denominators and numerators that are made of columns.
DERIVED: dict[str, Callable] = {
    "characters_without_newlines": lambda columns: columns("characters") - columns("newlines"),
    "8_grams": lambda columns: columns("words") - 7,
}
MEASURES = (*COLUMNS, *DERIVED)


def choose_rules(set_names: Iterable[str], thresholds: Mapping[str, float] | None = None) -> tuple[Rule, ...]:
    """The rules of the sets, with thresholds moved: {"gopher_repetition.top_2_gram": 0.25}.

    A threshold of None switches its rule off. A threshold for a rule of a set that was not chosen changes
    nothing.

    Raises:
        UserError: there is no set or no rule of that name.
    """
    chosen: list[Rule] = []
    for name in set_names:
        if name not in RULE_SETS:
            raise UserError(
                f"there are no rules called {name!r}{did_you_mean(name, RULE_SETS)}",
                hint=f"one of {', '.join(RULE_SETS)}",
            )
        chosen += RULE_SETS[name]
    moved = dict(thresholds or {})
    known = {rule.name for rules in RULE_SETS.values() for rule in rules}
    for name in moved:
        if name not in known:
            near = did_you_mean(name, known)
            in_set = sorted(rule for rule in known if rule.split(".")[0] == name.split(".")[0])
            raise UserError(
                f"there is no rule called {name!r}{near}",
                hint=f"rules are named SET.RULE, such as {', '.join(in_set or sorted(known)[:3])}",
            )
    kept = [rule for rule in chosen if moved.get(rule.name, 0) is not None]
    return tuple(
        dataclasses.replace(rule, threshold=moved[rule.name]) if rule.name in moved else rule for rule in kept
    )


def parse_threshold(text: str) -> tuple[str, float | None]:
    """("gopher_repetition.top_2_gram", 0.25) of "gopher_repetition.top_2_gram=0.25"; None for "=off".

    Raises:
        UserError: it is not RULE=NUMBER.
    """
    name, equals, value = text.partition("=")
    try:
        return name.strip(), None if value.strip() == "off" and equals else float(value)
    except ValueError:
        raise UserError(
            f"a threshold is RULE=NUMBER or RULE=off, not {text!r}",
            hint="such as gopher_repetition.top_2_gram=0.25",
        ) from None


def reasons_of(mask: int) -> list[str]:
    """The reasons of a mask, in the order of REASONS."""
    return [reason for bit, reason in enumerate(REASONS) if mask >> bit & 1]
