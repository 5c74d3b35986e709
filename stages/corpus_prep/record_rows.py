"""Conversations and preference pairs as rows of their parts, and their ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from stages.corpus_prep.held_records import HeldRecord
from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import Conversation, PreferencePair
from stages.corpus_prep.sampling import hashed_id
from stages.corpus_prep.screening.screen_records import Talk

Row = dict[str, Any]


def record_row(source: str, kind: str, held: HeldRecord, split: str) -> Row:
    """A row of the conversations part, or of the preferences part."""
    record = held.record
    is_pair = isinstance(record, PreferencePair)
    row = {
        "pair_id" if is_pair else "conversation_id": record_id(record),
        "source": source,
        "licence": held.licence,
        "origin": held.origin,
        "byte_start": held.begin if held.begin >= 0 else None,
        "byte_end": held.end if held.begin >= 0 else None,
        "kind": kind,
        "split": split,
        "tools": record.tools,
    }
    if isinstance(record, Conversation):
        return {**row, "messages": [message.as_row() for message in record.messages]}
    answers = {"chosen": record.chosen, "rejected": record.rejected}
    rows = {side: answer.as_row() if answer is not None else None for side, answer in answers.items()}
    return {**row, "prompt": [message.as_row() for message in record.prompt], **rows}


def record_id(record: Talk) -> str:
    """A hash of what is said and on offer; ids of calls do not count."""
    tools = [record.tools] if record.tools else []
    if isinstance(record, PreferencePair):
        return hashed_id(record.side, *_said((*record.prompt, *record.answers)), *tools)
    turns = (
        {"role": message.role, "content": _spoken(message), "tool_calls": _calls(message)}
        for message in record.messages
    )
    return hashed_id("conversation", *(json.dumps(turn, ensure_ascii=False) for turn in turns), *tools)


def prompt_id(pair: PreferencePair) -> str:
    """Equal for pairs of one prompt."""
    return hashed_id("prompt", *_said(pair.prompt), *filter(None, [pair.tools]))


def _said(messages: Iterable[Message]) -> list[str]:
    parts: list[str] = []
    for message in messages:
        parts += [_spoken(message), *filter(None, [_calls(message)])]
    return parts


def _spoken(message: Message) -> str:
    return f"<think>{message.reasoning}</think>{message.content}" if message.reasoning else message.content


def _calls(message: Message) -> str:
    return json.dumps(list(message.tool_calls), ensure_ascii=False) if message.tool_calls else ""
