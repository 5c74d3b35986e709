"""Held-out questions: sentences of documents that the embedder never trains on.

A question is the first prose sentence of a document, without the document's name. For the evaluation that
sentence is cut out of the document, in every chunk that has it, so that no leg can win by finding the words
of the question themselves; what is to be found is the document that *explains* what the sentence says.
Sentences that several documents start with have no single right answer and are not asked.

Half of the questions only describe; the other half also recall a part of the name, as people do who look up
something that they have used before. Vectors are better at the first kind, BM25 is good at names.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stages.vector_store.corpus import Document
from stages.vector_store.prose import summary_span, without_name
from stages.whitebox.bm25 import split_identifier, split_terms

MOST_TOPPED_UP_FRACTION = 0.25
"""With few validation documents, so large a share of all documents is held out for questions at most."""
SPLITS = ("dev", "test")
FEWEST_QUESTION_TERMS = 4
FEWEST_TERMS_LEFT = 12


@dataclass(frozen=True)
class Question:
    """`text` asks for document number `document`, whose `text[start:end]` is hidden while it is asked."""

    document: int
    start: int
    end: int
    text: str
    split: str
    """dev: the fusion weight is chosen on it; test: only reported."""
    kind: str
    """described: by the sentence alone; named: with a part of the title before it."""

    def query_id(self, doc_id: str) -> str:
        """`doc_id:start:end:kind`: enough to hide the same sentence again."""
        return f"{doc_id}:{self.start}:{self.end}:{self.kind}"


@dataclass(frozen=True)
class HeldOut:
    """The questions, and all documents (numbers) that must not be trained on."""

    questions: list[Question]
    documents: frozenset[int]


def hold_out(documents: Sequence[Document], num_questions: int) -> HeldOut:
    """Choose up to `num_questions` questions from the validation split.

    If it has too few, documents of the train split are added and held out as well, a quarter of all at
    most. The choice goes by the hash of the document's id: it is stable when documents come and go. dev and
    test alternate.
    """
    summaries = [summary_span(document.text) for document in documents]
    asked = Counter(_normal(d.text[s[0] : s[1]]) for d, s in zip(documents, summaries, strict=True) if s)
    by_hash = sorted(
        range(len(documents)), key=lambda n: hashlib.sha256(documents[n].doc_id.encode()).digest()
    )
    by_hash.sort(key=lambda n: documents[n].split != "validation")
    held = {n for n in by_hash if documents[n].split == "validation"}
    most_held = max(len(held), int(MOST_TOPPED_UP_FRACTION * len(documents)))
    questions: list[Question] = []
    for number in by_hash:
        if len(questions) == num_questions or (len(held) >= most_held and number not in held):
            break
        question = _ask(documents[number], number, summaries[number], len(questions), asked)
        if question:
            questions.append(question)
            held.add(number)
    return HeldOut(questions, frozenset(held))


def _ask(
    document: Document, number: int, span: tuple[int, int] | None, position: int, asked: Counter[str]
) -> Question | None:
    """The document's question, unless it is ambiguous, too short, or leaves nothing behind to be found."""
    if span is None:
        return None
    sentence = document.text[span[0] : span[1]]
    text = without_name(sentence, document.title)
    left = split_terms(f"{document.text[: span[0]]} {document.text[span[1] :]}")
    enough = len(split_terms(text)) >= FEWEST_QUESTION_TERMS and len(left) >= FEWEST_TERMS_LEFT
    if asked[_normal(sentence)] > 1 or not enough:
        return None
    recalled = part_of_name(document.title) if position // 2 % 2 else ""
    text = f"{recalled}: {text}" if recalled else text
    return Question(number, *span, text, SPLITS[position % 2], "named" if recalled else "described")


def part_of_name(title: str) -> str:
    """What somebody remembers of a name: its last component, or the second half of its words; of a Chinese
    one the last three quarters.

    >>> [part_of_name(title) for title in ("email.message.get_payload", "Art of War", "监控化学品管理条例")]
    ['get payload', 'of War', '化学品管理条例']
    """
    title = title.strip()
    words = title.split()
    if len(words) > 1:
        return " ".join(words[len(words) // 2 :])
    if not title.isascii():
        return title[len(title) // 4 :]
    return " ".join(split_identifier(title.rpartition(".")[2]))


def _normal(sentence: str) -> str:
    return " ".join(split_terms(sentence))
