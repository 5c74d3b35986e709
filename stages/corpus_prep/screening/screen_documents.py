"""Everything that a batch of repaired documents goes through before it is stored, in this order.

Language; traditional characters to simplified ones; personal data masked; measured; C4's line edits; lists
and scores. Personal data goes first of what is measured: hash, signature, statistics and every preview are
those of the text that is kept, and no table ever holds an address that was masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.corpus_prep.filtering import Filters
from stages.corpus_prep.measuring.edited_lines import C4_SETS, Edited, edit_measured
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.screening.identify_languages import identify_languages
from stages.corpus_prep.screening.personal_data import mask_personal_data, personal_schema
from stages.corpus_prep.screening.repair_batches import repair_batch, repair_bits, simplify_chinese
from stages.corpus_prep.screening.screen_models import read_models

_SIMPLIFIED = np.uint32(repair_bits(("traditional_characters",)))
_EDITED = np.uint32(repair_bits(("c4_lines",)))


@dataclass(frozen=True)
class Screening:
    """What the user set. models: the folder of `make_models`."""

    filters: Filters = field(default_factory=lambda: Filters(()))
    switches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Source -> filters that its entry switches."""
    mask: tuple[str, ...] = ()
    simplify_chinese: bool = False
    models: Path | None = None

    def clean(self, texts: pa.LargeStringArray) -> pa.LargeStringArray:
        """What is done to the text of a document before it is measured, of texts that documents meet."""
        texts, _ = repair_batch(texts)
        if self.simplify_chinese:
            is_chinese = _equals(identify_languages(texts).column("language"), "zh")
            texts, _ = simplify_chinese(texts, is_chinese)
        return mask_personal_data(texts, self.mask)[0] if self.mask else texts


@dataclass(frozen=True)
class Screened:
    """A batch that is ready. columns: language, its score, statistics, and all of the schemas of measures."""

    texts: pa.LargeStringArray
    repairs: NDArray[np.uint32]
    columns: dict[str, pa.Array]


class DocumentScreen:
    """Screens batches, and counts what it masked."""

    def __init__(self, screening: Screening) -> None:
        self.screening = screening
        self.models = read_models(screening.models)
        self.switches = dict(screening.switches)
        self.masked: Counter[str] = Counter()
        self.num_masked = 0
        """Documents with any."""

    def run(
        self, texts: pa.LargeStringArray, addresses: pa.Array, source: str = "", language: str = ""
    ) -> Screened:
        """Screen a batch of repaired texts. addresses: "" where there is none. language: "" to ask for it."""
        columns = _languages(texts, language)
        is_chinese = _equals(columns["language"], "zh")
        repairs = np.zeros(len(texts), np.uint32)
        if self.screening.simplify_chinese:
            texts, changed = simplify_chinese(texts, is_chinese)
            repairs[changed] |= _SIMPLIFIED
        texts, personal = self._mask(texts)
        edited = self._edit(texts, columns["language"], source)
        repairs[edited.changed] |= _EDITED
        for batch in (personal, edited.statistics, edited.left):
            columns |= dict(zip(batch.schema.names, batch.columns, strict=True))
        return Screened(edited.texts, repairs, columns | self._scores(edited.texts, addresses))

    def screened_titles(self, titles: pa.LargeStringArray, languages: pa.Array) -> pa.LargeStringArray:
        """Titles are texts, too, of their document's language; what is changed in them does not count."""
        if self.screening.simplify_chinese:
            titles, _ = simplify_chinese(titles, _equals(languages, "zh"))
        return mask_personal_data(titles, self.screening.mask)[0] if self.screening.mask else titles

    def _mask(self, texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, pa.RecordBatch]:
        names = personal_schema().names
        if not self.screening.mask:
            return texts, pa.record_batch([_constant(0, pa.uint32(), len(texts))] * len(names), names=names)
        texts, personal = mask_personal_data(texts, self.screening.mask)
        found = np.stack([personal.column(name).to_numpy() for name in names])
        self.masked.update(dict(zip(names, found.sum(axis=1).tolist(), strict=True)))
        self.num_masked += int(found.any(axis=0).sum())
        return texts, personal

    def _edit(self, texts: pa.LargeStringArray, languages: pa.Array, source: str) -> Edited:
        asked = {name: np.zeros(len(texts), np.bool_) for name in C4_SETS}
        for language in pc.unique(languages).to_pylist():
            sets = self.screening.filters.sets(language, self.switches.get(source, ()))
            for name in asked.keys() & set(sets):
                asked[name] |= _equals(languages, language)
        return edit_measured(texts, measure(texts), asked)

    def _scores(self, texts: pa.LargeStringArray, addresses: pa.Array) -> dict[str, pa.Array]:
        """The columns of SCREEN_SCHEMA about lists and models."""
        length = len(texts)
        urls = self.models.urls.entries_for(addresses.to_pylist()) if self.models.urls else None
        return {
            "listed_urls": _numbers(urls, length),
            "listed_url": pa.array(urls, pa.string()) if urls else _constant("", pa.string(), length),
            **self.text_scores(texts),
        }

    def text_scores(self, texts: pa.LargeStringArray) -> dict[str, pa.Array]:
        """Those of them that follow from the text."""
        models, length = self.models, len(texts)
        hits = models.phrases.count(texts) if models.phrases else None
        return {
            "listed_phrases": hits["listed_phrases"] if hits else _constant(0, pa.uint32(), length),
            "listed_phrase": hits["first_listed_phrase"] if hits else _constant("", pa.string(), length),
            "perplexity": models.perplexity.perplexity(texts) if models.perplexity else _nulls(length),
            "quality": models.quality.score(texts) if models.quality else _nulls(length),
        }


def _languages(texts: pa.LargeStringArray, language: str) -> dict[str, pa.Array]:
    if not language:
        spoken = identify_languages(texts)
        return {name: spoken.column(name) for name in spoken.schema.names}
    score = _constant(1.0, pa.float32(), len(texts))
    return {"language": _constant(language, pa.string(), len(texts)), "language_score": score}


def _numbers(urls: Sequence[str] | None, length: int) -> pa.Array:
    """1 for a document whose address is listed."""
    return pa.array([int(bool(url)) for url in urls or [""] * length], pa.uint32())


def _equals(column: pa.Array, value: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.equal(column, value).to_numpy(zero_copy_only=False)
    return found


def _constant(value: Any, kind: pa.DataType, length: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), length)


def _nulls(length: int) -> pa.Array:
    return pa.nulls(length, pa.float32())
