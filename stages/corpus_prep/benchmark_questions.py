"""Multiple-choice questions about held-out documents, for scoring models on what they were not shown.

    describe        "What does X do?" and four first sentences
    name            "Which of these is meant: SENTENCE" and four titles (documents of code only: the titles of
                    other texts stand in their first sentences)
    continuation    for corpora without titles: which sentence follows

Wrong choices come from held-out documents, too (of the same package where there are enough): a sentence that
was seen in training would be likely for that reason alone. The right choice is at each place equally often.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stages.corpus_prep.benchmark_forms import Question
from stages.corpus_prep.entries import Entry
from stages.corpus_prep.question_conversations import phrasings_for

NUM_CHOICES = 4
MIN_SENTENCE_WORDS = 4
MAX_RESERVE = 2000


@dataclass(frozen=True)
class DerivedQuestion:
    """A question with the id of the document that it was made from."""

    task: str
    question: Question
    doc_id: str
    source: str


def derive_questions(
    held_out: Sequence[Entry], trained: Sequence[Entry], number: int, seed: int
) -> list[DerivedQuestion]:
    """At most `number` questions, half of them of each kind that the documents allow.

    trained: entries of training documents, for wrong choices where held-out ones are too few.
    """
    rng = random.Random(f"{seed}/benchmark")
    common = Counter(_masked(entry) for entry in (*held_out, *trained))
    held_out = [entry for entry in held_out if common[_masked(entry)] == 1]
    reserve = _distinct_sentences([entry for entry in trained if _is_askable(entry)][:MAX_RESERVE])
    usable = _distinct_sentences([entry for entry in held_out if _is_askable(entry)])
    code = [entry for entry in usable if entry.is_code]
    described = usable[: number - min(len(code), number // 2)]
    drafts = [("describe", entry) for entry in described] + [("name", entry) for entry in code[: number // 2]]
    questions: list[DerivedQuestion] = []
    for kind, entry in drafts:
        place = len(questions) % NUM_CHOICES
        if (question := _question(kind, entry, usable, reserve, place, rng)) is not None:
            questions.append(DerivedQuestion(f"docs_{kind}", question, entry.doc_id, entry.source))
    return questions


def _is_askable(entry: Entry) -> bool:
    return len(entry.sentence.split()) >= MIN_SENTENCE_WORDS or (
        not entry.sentence.isascii() and len(entry.sentence) >= 8
    )


def _distinct_sentences(entries: Sequence[Entry]) -> list[Entry]:
    """One entry per sentence: two right choices would be unfair."""
    seen: set[str] = set()
    distinct = []
    for entry in entries:
        if (sentence := _masked(entry)) not in seen:
            seen.add(sentence)
            distinct.append(entry)
    return distinct


def _masked(entry: Entry) -> str:
    """The sentence without the title, which would give the answer away."""
    stand_in = {"zh": "它", "ar": "هو"}.get(entry.language, "It")
    return entry.sentence.replace(entry.title, stand_in) if len(entry.title) > 2 else entry.sentence


def _question(
    kind: str, entry: Entry, pool: Sequence[Entry], reserve: Sequence[Entry], place: int, rng: random.Random
) -> Question | None:
    others = _distractors(entry, pool, reserve, rng)
    if not others:
        return None
    if kind == "describe":
        asked = phrasings_for(entry).seen[0].format(title=entry.title)
        return _arranged(asked, _masked(entry), [_masked(other) for other in others], place)
    asked = f"Which of these is described as follows? {_masked(entry)}"
    return _arranged(asked, entry.title, [other.title for other in others], place)


def _distractors(
    entry: Entry, pool: Sequence[Entry], reserve: Sequence[Entry], rng: random.Random
) -> list[Entry]:
    """Three other entries, as near as there are enough of: same source and kind, else same language."""
    others = [o for o in pool if o.doc_id != entry.doc_id and o.language == entry.language]
    others = [o for o in others if o.is_code == entry.is_code]
    near = [o for o in others if o.source == entry.source]
    spare = [o for o in reserve if o.language == entry.language and o.is_code == entry.is_code]
    for candidates in (near, others, [*others, *spare]):
        if len(candidates) >= NUM_CHOICES - 1:
            return rng.sample(candidates, NUM_CHOICES - 1)
    return []


def _arranged(asked: str, right: str, wrong: list[str], place: int) -> Question:
    return Question(asked, (*wrong[:place], right, *wrong[place:]), place)


@dataclass(frozen=True)
class Passage:
    """Two neighbouring sentences of a held-out document."""

    doc_id: str
    source: str
    language: str
    opening: str
    following: str


def continuation_questions(passages: Sequence[Passage], number: int, seed: int) -> Iterator[DerivedQuestion]:
    """At most `number` questions which sentence follows an opening; wrong ones follow other openings."""
    rng = random.Random(f"{seed}/continuation")
    count = 0
    for passage in passages:
        others = [p for p in passages if p.doc_id != passage.doc_id and p.language == passage.language]
        choices = sorted({p.following for p in others} - {passage.following})
        if count < number and len(choices) >= NUM_CHOICES - 1:
            asked = f"{passage.opening}"
            wrong = rng.sample(choices, NUM_CHOICES - 1)
            question = _arranged(asked, passage.following, wrong, count % NUM_CHOICES)
            count += 1
            yield DerivedQuestion("docs_continuation", question, passage.doc_id, passage.source)
