"""Questions of `benchmark_sources`: all of them are kept out of the corpus, a sample of them is scored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stages.corpus_prep.benchmark_forms import RECOGNISED, Question, questions_of, unknown_question_form
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.preparation import drop_row
from stages.corpus_prep.reading.damage import FILE_REASONS, ROW_REASONS, ReadNotes, Reject
from stages.corpus_prep.reading.pieces import Piece
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.sources import SourceFile, expand
from stages.corpus_prep.sampling import Smallest, hashed_id
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession


@dataclass
class OwnQuestions:
    """The questions of one file. sample: those that are scored."""

    sample: Smallest[Question]
    _keys: dict[str, str] = field(default_factory=dict)

    def add(self, question: Question) -> None:
        """Take a question; of those with one text but other choices the corpus need not know."""
        key = hashed_id("question", question.question, *question.choices)
        self.sample.add(key, question)
        self._keys[question.question] = min(key, self._keys.get(question.question, key))

    def texts(self) -> list[tuple[str, str]]:
        """(key, text) of every question that a document may not hold, in the order of keys."""
        return sorted((key, text) for text, key in self._keys.items())


#: How many of a kind were left out, in words: of one, of several.
_TOLD = {
    "no_question_row": ("row is no question", "rows are no questions"),
    "bad_json": ("line is no JSON", "lines are no JSON"),
    "line_too_long": ("line is over the limit", "lines are over the limit"),
    "bad_csv": ("row breaks the rules of CSV", "rows break the rules of CSV"),
}


def read_own_questions(
    config: CorpusPrepConfig, session: StageSession, funnel: Funnel
) -> dict[str, OwnQuestions]:
    """Source -> questions of `benchmark_sources`; what holds none is a reject, and a warning counts it.

    Raises UserError for a file without any question, unless it is damaged and `on_damage` passes over that.
    """
    found: dict[str, OwnQuestions] = {}
    for file in expand("benchmark_sources", config.benchmark_sources) if config.benchmark_sources else []:
        notes = _notes(file, config, funnel)
        own = found[file.name] = _read(file, config, notes)
        if notes.reasons:
            session.warn(f"{file.name}: {_told(notes.reasons)}")
        session.log(f"{file.name}: {own.sample.num_added:,} questions, {len(own.sample):,} taken")
    return found


def _notes(file: SourceFile, config: CorpusPrepConfig, funnel: Funnel) -> ReadNotes:
    return ReadNotes(config.on_damage, lambda of: drop_row(funnel, file, of, file.licence, config.mask))


def _read(file: SourceFile, config: CorpusPrepConfig, notes: ReadNotes) -> OwnQuestions:
    own = OwnQuestions(Smallest(config.max_questions_per_source))
    first: dict[str, Any] = {}
    for row in read_piece(Piece(file), notes):
        first = first or row.fields
        num_before = own.sample.num_added
        for question in questions_of(row.fields) or ():
            own.add(question)
        if own.sample.num_added == num_before:
            notes.reject(Reject(file.origin, "no_question_row", row.place, row.preview))
    is_damaged = config.on_damage == "skip" and bool(notes.reasons.keys() & FILE_REASONS.keys())
    if not len(own.sample) and not is_damaged:
        if first and questions_of(first) is None:
            raise unknown_question_form(file.name, first)
        raise UserError(
            f"{file.name} holds no benchmark question: {_told(notes.reasons) or 'it has no rows'}",
            hint=f"recognised: {RECOGNISED}",
        )
    return own


def _told(reasons: Counter[str]) -> str:
    """`1 row is no question, 2 lines are no JSON`."""
    counted = [f"{reasons[of]:,} {said[reasons[of] > 1]}" for of, said in _TOLD.items() if reasons[of]]
    meanings = {**FILE_REASONS, **ROW_REASONS}
    return ", ".join([*counted, *(f"{meanings[of]} ({of})" for of in sorted(reasons.keys() - _TOLD.keys()))])
