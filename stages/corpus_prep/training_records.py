"""The parts that are made of records: conversations, preference pairs, benchmark questions, scenarios.

Conversations and pairs are written in the order of their ids, so any first part of them is a fair sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_contracts import AGENT_SCENARIOS, BENCHMARK, CONVERSATIONS, PREFERENCES
from data_contracts.tables import write_part
from stages.corpus_prep.benchmark_forms import Question
from stages.corpus_prep.benchmark_questions import (
    DerivedQuestion,
    continuation_questions,
    derive_questions,
)
from stages.corpus_prep.decontamination import ContaminationIndex, Overlap
from stages.corpus_prep.derived_preferences import Answered, derive_pairs
from stages.corpus_prep.entries import Entry, of_split
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.held_records import Records, record_id
from stages.corpus_prep.question_conversations import Exchange, question_exchanges, small_talk
from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import Conversation
from stages.corpus_prep.sampling import Smallest, balanced, hashed_id, split_of
from stages.corpus_prep.scenarios import Scenarios, make_scenarios
from stages.corpus_prep.screening.screen_records import record_text, with_tools_told
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.corpus_prep.survey import Survey
from stages.corpus_prep.tool_conversations import ToolTaskMaker, tool_tasks

ASSISTANT_SOURCE = "glassworks"
FEWEST_QUESTIONS = 8
MAX_LEAKS_PER_QUESTION = 2

Row = dict[str, Any]


def make_questions(
    found: Survey, leaks: Mapping[str, Sequence[Overlap]], config: CorpusPrepConfig
) -> list[DerivedQuestion]:
    """Benchmark questions about held-out documents; about neighbouring sentences where titles are too few.

    leaks: training documents that give a held-out one away. Where those are many, the sentence is a phrase
    that everybody uses, and the question is left out; where they are few, they will be.
    """
    entries = found.book.entries()
    uses = Counter(overlap.item for overlaps in leaks.values() for overlap in overlaps)
    held_out = [e for e in of_split(entries, "validation") if uses[e.doc_id] <= MAX_LEAKS_PER_QUESTION]
    questions = derive_questions(held_out, of_split(entries, "train"), config.num_questions, config.seed)
    if len(questions) < FEWEST_QUESTIONS:
        passages = [passage for _, passage in found.passages.items()]
        missing = config.num_questions - len(questions)
        questions += continuation_questions(passages, missing, config.seed)
    return questions


def write_benchmark(
    derived: Sequence[DerivedQuestion], own: Mapping[str, Smallest[Question]], folder: Path
) -> Counter[str]:
    """Write the benchmark part; returns questions per task."""
    rows = [_question_row(d.task, d.source, d.question) for d in derived]
    for source, sample in own.items():
        task = source.split(".")[0].replace("/", "_")
        rows += [_question_row(task, source, question) for _, question in sample.items()]
    unique = {row["question_id"]: row for row in rows}
    write_part(folder, BENCHMARK, unique.values())
    return Counter(row["task"] for row in unique.values())


def _question_row(task: str, source: str, question: Question) -> Row:
    return {
        "question_id": hashed_id("question", task, question.question, *question.choices),
        "task": task,
        "question": question.question,
        "choices": list(question.choices),
        "answer_index": question.answer_index,
        "source": source,
    }


class RecordWriter:
    """Makes and writes the records that are derived from documents, beside those that the user gave."""

    def __init__(
        self,
        config: CorpusPrepConfig,
        entries: Sequence[Entry],
        gathered: Records,
        funnel: Funnel,
        own_questions: ContaminationIndex,
    ) -> None:
        self.config = config
        self.entries = entries
        self.gathered = gathered
        self.funnel = funnel
        self.own_questions = own_questions
        self.scenarios: Scenarios = make_scenarios(
            of_split(entries, "train"), config.num_scenarios, config.seed
        )

    def write_scenarios(self, folder: Path) -> int:
        """Write the scenarios part; returns their number."""
        return write_part(folder, AGENT_SCENARIOS, self.scenarios.rows)

    def write_conversations(self, folder: Path) -> list[Row]:
        """Write the conversations part; returns its rows."""
        rows = {row["conversation_id"]: row for row in (*self._own(), *self._questions(), *self._tools())}
        ordered = _with_both_splits([rows[key] for key in sorted(rows)])
        write_part(folder, CONVERSATIONS, ordered)
        return ordered

    def _own(self) -> Iterable[Row]:
        for source, key, record in balanced(self.gathered.conversations, self.config.max_conversations):
            if self._is_clean(source, key, record_text(record)):
                yield self._row(source, "own", record, split_of(key, self.config.validation_fraction))

    def _is_clean(self, source: str, key: str, text: str) -> bool:
        """Whether a record of the user's gives no benchmark question away; if it does, it is recorded."""
        overlap = self.own_questions.find(text)
        if overlap is not None:
            about = {"doc_id": key, "source": source, "title": "", "num_bytes": len(text.encode())}
            detail = f"{overlap.item}: {overlap.detail}"
            self.funnel.dropped("records", "benchmark_overlap", text, detail, **about)
        return overlap is None

    def _questions(self) -> Iterable[Row]:
        for exchange in small_talk():
            yield self._exchange_row(exchange, "chat")
        if not self.gathered.conversations:
            number = self.config.num_question_conversations
            reserved = self.scenarios.reserved
            for exchange in question_exchanges(self.entries, number, self.config.seed, reserved):
                yield self._exchange_row(exchange, "qa")

    def _exchange_row(self, exchange: Exchange, kind: str) -> Row:
        record = Conversation((Message("user", exchange.question), Message("assistant", exchange.answer)))
        if exchange.entry is None:
            return self._row(ASSISTANT_SOURCE, kind, record, "train")
        return self._row(exchange.entry.source, kind, record, exchange.entry.split)

    def _tools(self) -> Iterable[Row]:
        maker = ToolTaskMaker(
            of_split(self.entries, "train"), f"{self.config.seed}/tools", reserved=self.scenarios.reserved
        )
        for task in tool_tasks(maker, self.config.num_tool_conversations):
            key = hashed_id("tool", task.prompt)
            split = split_of(key, self.config.validation_fraction)
            yield self._row(ASSISTANT_SOURCE, "tool", Conversation(task.messages()), split)

    def _row(self, source: str, kind: str, record: Conversation, split: str) -> Row:
        return {
            "conversation_id": record_id("conversation", record.messages),
            "source": source,
            "kind": kind,
            "split": split,
            "messages": [message.as_row() for message in with_tools_told(record.messages, record.tools)],
        }

    def write_preferences(self, conversations: Sequence[Row], folder: Path) -> Counter[str]:
        """Write the preferences part; returns pairs per kind. conversations: rows to derive pairs from."""
        rows = list(self._own_pairs()) if self.gathered.preferences else list(self._derived(conversations))
        unique = {row["pair_id"]: row for row in rows}
        ordered = _with_both_splits([unique[key] for key in sorted(unique)])
        write_part(folder, PREFERENCES, ordered)
        return Counter(row["kind"] for row in ordered)

    def _own_pairs(self) -> Iterable[Row]:
        for source, key, pair in balanced(self.gathered.preferences, self.config.max_preferences):
            prompt = [message.as_row() for message in with_tools_told(pair.prompt, pair.tools)]
            # Pairs of one prompt stay on one side, or its answers would leak.
            split = split_of(
                hashed_id("prompt", *(row["content"] for row in prompt)), self.config.validation_fraction
            )
            if self._is_clean(source, key, record_text(pair)):
                yield _pair_row(source, "own", split, prompt, pair.chosen, pair.rejected)

    def _derived(self, conversations: Sequence[Row]) -> Iterable[Row]:
        answered = [_answered(row) for row in conversations if row["kind"] in ("qa", "own")]
        for pair in derive_pairs(answered, self.config.num_derived_preferences, self.config.seed):
            item = pair.of
            yield _pair_row(item.source, pair.kind, item.split, list(item.prompt), item.answer, pair.rejected)


def _answered(row: Row) -> Answered:
    *prompt, answer = row["messages"]
    return Answered(row["conversation_id"], row["source"], row["split"], tuple(prompt), answer["content"])


def _pair_row(source: str, kind: str, split: str, prompt: list[Row], chosen: str, rejected: str) -> Row:
    said = "\x00".join(message["content"] for message in prompt)
    return {
        "pair_id": hashed_id("pair", said, chosen, rejected),
        "source": source,
        "kind": kind,
        "split": split,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
    }


def _with_both_splits(rows: list[Row]) -> list[Row]:
    """At least one row of each split, where there are two rows: stages measure on what they did not see."""
    for split, index in (("validation", 0), ("train", -1)):
        if len(rows) > 1 and all(row["split"] != split for row in rows):
            rows[index] = {**rows[index], "split": split}
    return rows
