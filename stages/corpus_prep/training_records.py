"""The parts that are made of records: conversations, preference pairs, benchmark questions, scenarios.

Conversations and pairs are written in the order of their ids, so any first part of them is a fair sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
from stages.corpus_prep.held_records import HeldRecord
from stages.corpus_prep.question_conversations import Exchange, question_exchanges, small_talk
from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import Conversation, PreferencePair
from stages.corpus_prep.record_rows import Row, record_row
from stages.corpus_prep.record_selection import ChosenRecords, Item, drop
from stages.corpus_prep.sampling import Smallest, balanced, hashed_id, split_of
from stages.corpus_prep.scenarios import Scenarios, make_scenarios
from stages.corpus_prep.screening.screen_records import record_text
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.corpus_prep.survey import Survey
from stages.corpus_prep.tool_conversations import ToolTaskMaker, tool_tasks

ASSISTANT_SOURCE = "glassworks"
FEWEST_QUESTIONS = 8
MAX_LEAKS_PER_QUESTION = 2


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
        chosen: ChosenRecords,
        funnel: Funnel,
        own_questions: ContaminationIndex,
    ) -> None:
        self.config = config
        self.entries = entries
        self.chosen = chosen
        self.gathered = chosen.records
        self.funnel = funnel
        self.own_questions = own_questions
        self._held: dict[str, HeldRecord] = {}
        self._groups: dict[str, str] = {}
        """Id of a row -> what must lie on the same side of the split; "" for nothing else."""
        self.scenarios: Scenarios = make_scenarios(
            of_split(entries, "train"), config.num_scenarios, config.seed
        )

    def write_scenarios(self, folder: Path) -> int:
        """Write the scenarios part; returns their number."""
        return write_part(folder, AGENT_SCENARIOS, self.scenarios.rows)

    def write_conversations(self, folder: Path) -> list[Row]:
        """Write the conversations part; returns its rows."""
        rows = {row["conversation_id"]: row for row in (*self._own(), *self._questions(), *self._tools())}
        ordered = self._with_both_splits([rows[key] for key in sorted(rows)], "conversation_id")
        write_part(folder, CONVERSATIONS, ordered)
        return ordered

    def _own(self) -> Iterable[Row]:
        return self._clean(balanced(self.gathered.conversations, self.config.max_conversations))

    def _clean(self, records: Iterable[tuple[str, str, HeldRecord]]) -> Iterable[Row]:
        """Rows of the user's records that give no benchmark question away; those that do are recorded."""
        for source, key, held in records:
            overlap = self.own_questions.find(record_text(held.record))
            if overlap is None:
                split = self.chosen.split_of(key, self.config.validation_fraction)
                yield self._row(source, "own", held, split, self.chosen.groups[key])
            else:
                detail = f"{overlap.item}: {overlap.detail}"
                drop(self.funnel, Item(source, key, held), "benchmark_overlap", detail)

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
            return self._row(ASSISTANT_SOURCE, kind, HeldRecord(record), "train")
        of = exchange.entry
        return self._row(of.source, kind, HeldRecord(record, of.licence, of.origin), of.split)

    def _tools(self) -> Iterable[Row]:
        maker = ToolTaskMaker(
            of_split(self.entries, "train"), f"{self.config.seed}/tools", reserved=self.scenarios.reserved
        )
        for task in tool_tasks(maker, self.config.num_tool_conversations):
            key = hashed_id("tool", task.prompt)
            split = split_of(key, self.config.validation_fraction)
            yield self._row(ASSISTANT_SOURCE, "tool", HeldRecord(Conversation(task.messages())), split)

    def _row(self, source: str, kind: str, held: HeldRecord, split: str, group: str = "") -> Row:
        row = record_row(source, kind, held, split)
        key = row.get("conversation_id") or row["pair_id"]
        self._held[key], self._groups[key] = held, group
        return row

    def write_preferences(self, conversations: Sequence[Row], folder: Path) -> Counter[str]:
        """Write the preferences part; returns pairs per kind. conversations: rows to derive pairs from."""
        own = self._clean(balanced(self.gathered.preferences, self.config.max_preferences))
        rows = list(own)
        if not any(row["chosen"] and row["rejected"] for row in rows):  # most methods want pairs
            rows += self._derived(conversations)
        unique = {row["pair_id"]: row for row in rows}
        ordered = self._with_both_splits([unique[key] for key in sorted(unique)], "pair_id")
        write_part(folder, PREFERENCES, ordered)
        return Counter(row["kind"] for row in ordered)

    def _derived(self, conversations: Sequence[Row]) -> Iterable[Row]:
        rows = {row["conversation_id"]: row for row in conversations if row["kind"] in ("qa", "own")}
        rows = rows or {row["conversation_id"]: row for row in conversations}
        answered = [Answered(key, row["source"], row["messages"][-1]["content"]) for key, row in rows.items()]
        for pair in derive_pairs(answered, self.config.num_derived_preferences, self.config.seed):
            key = pair.of.key
            held = _against(self._held[key], pair.rejected)
            yield self._row(rows[key]["source"], pair.kind, held, rows[key]["split"], key)

    def _with_both_splits(self, rows: list[Row], id_name: str) -> list[Row]:
        """At least one row of each split, where there are two rows: stages measure on what they did not see.

        The first row moves with all that must not lie astride, unless that is everything.
        """
        for split, index in (("validation", 0), ("train", -1)):
            if len(rows) > 1 and all(row["split"] != split for row in rows):
                group = self._groups[rows[index][id_name]]
                moved = {row[id_name] for row in rows if group and self._groups[row[id_name]] == group}
                moved = moved if 0 < len(moved) < len(rows) else {rows[index][id_name]}
                rows = [{**row, "split": split} if row[id_name] in moved else row for row in rows]
        return rows


def _against(held: HeldRecord, rejected: str) -> HeldRecord:
    """A pair of a conversation's last answer and a wrong one, which was thought about in the same way."""
    record = held.record
    assert isinstance(record, Conversation)
    *prompt, chosen = record.messages
    wrong = replace(chosen, content=rejected)
    return replace(held, record=PreferencePair(tuple(prompt), chosen, wrong, record.tools))
