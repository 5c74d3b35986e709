"""Thresholds that the user sets on language scores, lists, perplexity and quality, as rules like all others.

So a document carries these reasons beside those of the filters, and a threshold that moves decides anew from
what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stages.corpus_prep.measuring.rules import Rule
from stages.corpus_prep.screening.personal_data import personal_schema

#: What screening stores beside the statistics; perplexity and quality are null where no texts were given.
SCREEN_SCHEMA = pa.schema(
    [
        *personal_schema(),
        ("listed_urls", pa.uint32()),
        ("listed_url", pa.string()),
        ("listed_phrases", pa.uint32()),
        ("listed_phrase", pa.string()),
        ("perplexity", pa.float32()),
        ("quality", pa.float32()),
    ]
)
NOT_JUDGED = frozenset({*personal_schema().names, "listed_url", "listed_phrase"})
"""Columns that no rule asks for."""
_SETTING = "a setting of corpus_prep"
#: Reason -> column that holds what was hit.
_HITS = {"listed_url": "listed_url", "listed_phrase": "listed_phrase"}


@dataclass(frozen=True)
class ScreenLimits:
    """What the user set; the defaults drop nothing that was not listed."""

    min_language_score: float = 0.0
    max_listed_phrases: int = 0
    max_perplexity: float | None = None
    min_quality: float | None = None

    def rules(self) -> tuple[Rule, ...]:
        """For all documents, whatever the filters of their source."""
        asked: list[tuple[str, str, str, float | None]] = [
            ("low_language_score", "language_score", "<", self.min_language_score or None),
            ("listed_url", "listed_urls", ">", 0),
            ("listed_phrase", "listed_phrases", ">", self.max_listed_phrases),
            ("high_perplexity", "perplexity", ">", self.max_perplexity),
            ("low_quality_score", "quality", "<", self.min_quality),
        ]
        return tuple(
            Rule(reason, measure, comparison, _as_stored(limit), reason, _SETTING)
            for reason, measure, comparison, limit in asked
            if limit is not None
        )


def _as_stored(limit: float) -> float:
    """Scores are stored with 24 bits: 0.65 must not be below 0.65."""
    return float(np.float32(limit))


def limits_of(config: Any) -> ScreenLimits:
    """The limits among the settings."""
    return ScreenLimits(**{name: getattr(config, name) for name in ScreenLimits.__dataclass_fields__})


def what_was_hit(measures: pa.Table, rule: Rule) -> str:
    """` 'casino'`: the entry of a list that the first of these documents fell under, or ""."""
    return f" {measures[_HITS[rule.reason]][0].as_py()!r}" if rule.reason in _HITS else ""
