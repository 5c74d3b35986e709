"""Questions of `benchmark_sources`: all of them are kept out of the corpus, a sample of them is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.corpus_prep.benchmark_forms import Question, questions_of, unknown_question_form
from stages.corpus_prep.reading.readers import ReadNotes, read_rows
from stages.corpus_prep.reading.sources import SourceFile, expand
from stages.corpus_prep.sampling import Smallest, hashed_id
from stages.corpus_prep.spec import CorpusPrepConfig
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


def read_own_questions(config: CorpusPrepConfig, session: StageSession) -> dict[str, OwnQuestions]:
    """Source -> questions of `benchmark_sources`. Raises UserError for a file without any of a known form."""
    files = expand("benchmark_sources", config.benchmark_sources) if config.benchmark_sources else []
    found = {file.name: _read(file, config) for file in files}
    for name, own in found.items():
        session.log(f"{name}: {own.sample.num_added:,} questions, {len(own.sample):,} taken")
    return found


def _read(file: SourceFile, config: CorpusPrepConfig) -> OwnQuestions:
    own = OwnQuestions(Smallest(config.max_questions_per_source))
    first: dict[str, Any] = {}
    for row in read_rows(file, ReadNotes()):
        first = first or row
        for question in questions_of(row) or ():
            own.add(question)
    if not len(own.sample):
        raise unknown_question_form(file.name, first)
    return own
