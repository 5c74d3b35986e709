"""datatrove's word splitter and filters, to compare with: the splitter as ours takes one, the filters as
they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import split_into_sentences
from datatrove.utils.typeshelper import Languages
from datatrove.utils.word_tokenizers import load_word_tokenizer

from stages.corpus_prep.measuring.columns import CHINESE_STOP_WORDS
from stages.corpus_prep.measuring.rules import RULE_SETS, Rule

LANGUAGES = {"en": Languages.english, "zh": Languages.mandarin_chinese}
#: datatrove's reason -> ours, where it is not the same word.
REASONS = {
    "gopher_short_doc": "short_document",
    "gopher_long_doc": "long_document",
    "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "letter_words",
    "gopher_enough_stop_words": "stop_words",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_characters",
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_gram" for n in range(5, 11)},
    "too_few_sentences": "few_sentences",
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_characters",
    "list_ratio": "newlines",
}


class DatatroveSplitter:
    """Words and sentences as datatrove's filters see them (spaCy; for Chinese with jieba)."""

    def __init__(self, language: str) -> None:
        logging.getLogger("jieba").setLevel(logging.WARNING)
        self.code = LANGUAGES[language]
        self._words = load_word_tokenizer(self.code)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Of tokens without the white space around them; none of white space alone."""
        if not text:
            return []
        found = []
        with self._words.tokenizer.memory_zone():
            for document in self._words._do_tokenize(text):
                for token in document:
                    size = len(token.text.strip())
                    if size:
                        start = token.idx + len(token.text) - len(token.text.lstrip())
                        found.append((start, start + size))
        return found

    def num_sentences(self, line: str) -> int:
        """As `C4QualityFilter` counts them."""
        return len(split_into_sentences(line, self.code))


@lru_cache
def reference_filters(language: str) -> dict[str, Callable[[Document], bool | tuple[bool, str]]]:
    """Set of rules -> datatrove's filter: its defaults for English, FineWeb2's for Chinese."""
    code = LANGUAGES[language]
    filters = {
        "gopher_quality": GopherQualityFilter(language=code),
        "gopher_repetition": GopherRepetitionFilter(language=code),
        "c4": C4QualityFilter(language=code),
        "c4_fineweb": C4QualityFilter(filter_no_terminal_punct=False, language=code),
        "fineweb": FineWebQualityFilter(language=code),
    }
    if language == "zh":
        filters |= _fineweb2_chinese()
    return {name: each.filter for name, each in filters.items()}


def _fineweb2_chinese() -> dict:
    code = LANGUAGES["zh"]
    runs = ((0.256, 0.201, 0.171), (0.198, 0.182, 0.167, 0.154, 0.14, 0.127))
    return {
        "gopher_quality": GopherQualityFilter(
            min_avg_word_length=1,
            max_avg_word_length=5,
            max_non_alpha_words_ratio=0.735,
            stop_words=list(CHINESE_STOP_WORDS),
            language=code,
        ),
        "gopher_repetition": GopherRepetitionFilter(
            dup_line_frac=0.287,
            dup_para_frac=0,
            dup_line_char_frac=0,
            dup_para_char_frac=0,
            top_n_grams=tuple(zip((2, 3, 4), runs[0], strict=True)),
            dup_n_grams=tuple(zip(range(5, 11), runs[1], strict=True)),
            language=code,
        ),
        "fineweb": FineWebQualityFilter(
            line_punct_thr=0.106,
            short_line_thr=999,
            char_duplicates_ratio=0.1,
            new_line_ratio=0.178,
            language=code,
        ),
    }


def our_rules(name: str, language: str) -> tuple[Rule, ...]:
    """Our rules for the same step."""
    if language == "zh" and name in {"gopher_quality", "gopher_repetition", "fineweb"}:
        return tuple(rule for rule in RULE_SETS["fineweb2_zh"] if rule.reason.startswith(f"{name}."))
    return RULE_SETS[name]


def reference_decision(name: str, language: str, text: str) -> tuple[str, str]:
    """(our name of datatrove's reason or "" where it keeps the text, the text that it leaves)."""
    document = Document(text=text, id="0")
    outcome = reference_filters(language)[name](document)
    reason = "" if outcome is True else outcome[1]
    if (name, reason) == ("fineweb", "empty"):
        reason = "blank"
    return REASONS.get(reason, reason), document.text
