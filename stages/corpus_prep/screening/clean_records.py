"""Conversations and pairs are repaired, simplified and masked as documents are, text by text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

import numpy as np
import pyarrow as pa

from stages.corpus_prep.languages import detect_language
from stages.corpus_prep.screening.personal_data import mask_personal_data
from stages.corpus_prep.screening.repair_batches import simplify_chinese
from stages.corpus_prep.screening.screen_documents import Screening
from stages.corpus_prep.screening.screen_records import (
    Talk,
    judge_record,
    record_text,
    repaired_record,
    with_texts,
)

#: Without an @, two colons or a long run of digits there is nothing to mask; most turns have none of them.
_MAY_BE_PERSONAL = re.compile(r"@|:[0-9A-Fa-f]{0,4}:|[0-9][0-9 .()\-]{6,}")


class RecordCleaner:
    """Cleans records, and counts what it masked."""

    def __init__(self, screening: Screening) -> None:
        self.screening = screening
        self.masked: Counter[str] = Counter()
        self.num_masked = 0
        """Records with any."""
        self.num_simplified = 0

    def clean(self, record: Talk) -> tuple[Talk, str, str]:
        """(the record with every text in it cleaned, reason, detail); reason "" to keep it."""
        record = repaired_record(record)
        language = detect_language(record_text(record))
        if self.screening.simplify_chinese and language == "zh":
            simplified = with_texts(record, _simplified)
            self.num_simplified += simplified != record
            record = simplified
        if self.screening.mask:
            before = self.masked.total()
            record = with_texts(record, self._masked)
            self.num_masked += self.masked.total() > before
        return record, *judge_record(record, language)

    def _masked(self, text: str) -> str:
        return mask_text(text, self.screening.mask, self.masked)


def mask_text(text: str, kinds: Collection[str], counts: Counter[str] | None = None) -> str:
    """One text without personal data of these kinds. counts: `pii_KIND` -> how many, to add to."""
    if not kinds or not _MAY_BE_PERSONAL.search(text):
        return text
    masked, found = mask_personal_data(pa.array([text], pa.large_string()), kinds)
    if counts is not None:
        counts.update({kind: number for kind, number in found.to_pylist()[0].items() if number})
    return str(masked[0].as_py())


def _simplified(text: str) -> str:
    texts, _ = simplify_chinese(pa.array([text], pa.large_string()), np.ones(1, np.bool_))
    return str(texts[0].as_py())
