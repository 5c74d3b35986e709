"""Other thresholds for a corpus that is there: decided from its stored scores alone, no text is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_contracts import DOCUMENT_SCORES
from stages.corpus_prep.filtering import Filters, explain_documents, judge_documents
from stages.corpus_prep.measuring.rules import reasons_of
from stages.corpus_prep.screening.screen_rules import ScreenLimits, limits_of

BATCH_ROWS = 1 << 16
OTHER_LANGUAGE = "other_language"
LANGUAGE_BIT = np.uint64(1 << 63)
"""Stands for `other_language` in a mask; the reasons of rules have the lower bits."""
KEPT, QUALITY = "kept", "quality"


class FilterSettings(Protocol):
    """The settings that are decided by here."""

    @property
    def filters(self) -> tuple[str, ...]:
        """Rule sets."""

    @property
    def thresholds(self) -> tuple[str, ...]:
        """Thresholds that were moved."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages to keep."""


#: By these a corpus can be decided anew.
SETTINGS = ("filters", "thresholds", "languages", *ScreenLimits.__dataclass_fields__)


@dataclass(frozen=True)
class Decider:
    """What the step `quality` asks."""

    filters: Filters
    languages: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: FilterSettings) -> Decider:
        """As the stage would with these settings. Raises UserError for names that do not exist."""
        return cls(Filters(config.filters, config.thresholds, limits_of(config)), config.languages)

    def masks(self, scores: pa.Table) -> NDArray[np.uint64]:
        """uint64 [documents]: a bit for every reason to drop it; 0 is kept."""
        masks = judge_documents(scores, self.filters, switches_of(scores))
        if self.languages:
            wanted = pc.is_in(scores["language"], pa.array(self.languages)).to_numpy()
            masks[~wanted] |= LANGUAGE_BIT
        return masks

    def why(self, score: pa.Table) -> str:
        """The rules that the one document breaks, with their values."""
        ((_, told),) = explain_documents(score, self.filters, switches_of(score))
        language = score["language"][0].as_py()
        foreign = bool(self.languages) and language not in self.languages
        return "; ".join(filter(None, (told, f"language {language}" if foreign else "")))


def switches_of(scores: pa.Table) -> dict[str, tuple[str, ...]]:
    """Source -> filters that its entry switches, for those that do."""
    some = scores.select(["source", "switches"]).filter(pc.not_equal(scores["switches"], ""))
    return {row["source"]: tuple(row["switches"].split()) for row in some.to_pylist()}


@dataclass
class Share:
    """Some of the documents."""

    documents: int = 0
    num_bytes: int = 0

    def add(self, sizes: NDArray[np.int64]) -> None:
        """Count documents of these sizes in bytes."""
        self.documents += len(sizes)
        self.num_bytes += int(sizes.sum())


@dataclass
class Tally:
    """What a decider drops: all, by reason, and what goes for that reason alone."""

    dropped: Share = field(default_factory=Share)
    by_reason: dict[str, Share] = field(default_factory=dict)
    alone: dict[str, Share] = field(default_factory=dict)

    def add(self, masks: NDArray[np.uint64], sizes: NDArray[np.int64]) -> None:
        """Count documents."""
        self.dropped.add(sizes[masks != 0])
        for reason, bit in _bits(masks):
            self.by_reason.setdefault(reason, Share()).add(sizes[masks & bit != 0])
            self.alone.setdefault(reason, Share()).add(sizes[masks == bit])


def _bits(masks: NDArray[np.uint64]) -> Iterator[tuple[str, np.uint64]]:
    """(reason, its bit) of every reason that occurs."""
    present = int(np.bitwise_or.reduce(masks, initial=np.uint64(0)))
    for bit in range(64):
        if present >> bit & 1:
            (reason,) = [OTHER_LANGUAGE] if bit == 63 else reasons_of(1 << bit)
            yield reason, np.uint64(1 << bit)


@dataclass(frozen=True)
class Changed:
    """A document that changes sides."""

    doc_id: str
    title: str
    source: str
    place: str
    """File or address where it is not the source's name, and the bytes in there where they are known."""
    why: str


@dataclass
class Redecision:
    """What two deciders say of the same documents."""

    total: Share = field(default_factory=Share)
    before: Tally = field(default_factory=Tally)
    after: Tally = field(default_factory=Tally)
    goes: Share = field(default_factory=Share)
    """Passed before, is dropped after."""
    goes_from_corpus: Share = field(default_factory=Share)
    """Of these, what is in the corpus: no later step has dropped it."""
    returns: Share = field(default_factory=Share)
    told_otherwise: int = 0
    """Documents of which the corpus itself says something else than `before`: the rules' code has changed."""
    going: list[Changed] = field(default_factory=list)
    returning: list[Changed] = field(default_factory=list)


def redecide(files: Sequence[Path], before: Decider, after: Decider, num_examples: int = 3) -> Redecision:
    """Decide over all documents of a `document_scores` part; memory holds one batch.

    The examples are those with the smallest ids. Duplicates, the size limit and benchmarks, which come after
    the filters, are not decided anew.
    """
    found = Redecision()
    for scores in _batches(files):
        sizes = scores["num_bytes"].to_numpy()
        old, new = before.masks(scores), after.masks(scores)
        found.total.add(sizes)
        found.before.add(old, sizes)
        found.after.add(new, sizes)
        verdicts = scores["verdict"]
        in_corpus = pc.equal(verdicts, KEPT).to_numpy()
        found.told_otherwise += int(((old != 0) != pc.equal(verdicts, QUALITY).to_numpy()).sum())
        goes, returns = (old == 0) & (new != 0), (old != 0) & (new == 0)
        found.goes.add(sizes[goes])
        found.goes_from_corpus.add(sizes[goes & in_corpus])
        found.returns.add(sizes[returns])
        found.going = _first(found.going, scores.filter(pa.array(goes)), after, num_examples)
        found.returning = _first(found.returning, scores.filter(pa.array(returns)), before, num_examples)
    return found


def _batches(files: Iterable[Path]) -> Iterator[pa.Table]:
    wanted = [
        name for name in DOCUMENT_SCORES.schema.names if name not in ("split_key", "reasons", "licence")
    ]
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield pa.Table.from_batches([batch])


def _first(held: list[Changed], some: pa.Table, decider: Decider, count: int) -> list[Changed]:
    """The `count` with the smallest ids of those held and of some more."""
    if some.num_rows:
        order = pc.select_k_unstable(some, count, [("doc_id", "ascending"), ("source", "ascending")])
        held = held + [_changed(some.slice(row, 1), decider) for row in order.to_pylist()]
    return sorted(held, key=lambda changed: (changed.doc_id, changed.source))[:count]


def _changed(score: pa.Table, decider: Decider) -> Changed:
    about: Mapping[str, Any] = score.select(
        ["doc_id", "title", "source", "origin", "byte_start", "byte_end"]
    ).to_pylist()[0]
    place = about["origin"] if about["origin"] != about["source"] else ""
    if about["byte_start"] is not None:
        place = f"{place} bytes {about['byte_start']:,} to {about['byte_end']:,}".lstrip()
    return Changed(about["doc_id"], about["title"] or "", about["source"], place, decider.why(score))
