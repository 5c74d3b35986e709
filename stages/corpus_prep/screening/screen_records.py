"""Conversations and pairs pass the repair, the filters and the duplicate check that documents pass.

Only those filters are asked that make sense for an answer of one line: a short answer is a good answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from stages.corpus_prep.quality_filters import Measured, broken_characters, duplicate_lines, repeated_ngrams
from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import Conversation, PreferencePair
from stages.corpus_prep.sampling import hashed_id
from stages.corpus_prep.text_repair import repair_text

RECORD_FILTERS = (broken_characters, duplicate_lines, repeated_ngrams)

Talk = Conversation | PreferencePair
Change = Callable[[str], str]


def repaired_record(record: Talk) -> Talk:
    """The record with every text in it repaired."""
    return with_texts(record, lambda text: repair_text(text).text)


def with_texts(record: Talk, change: Change) -> Talk:
    """The record with every text in it changed: contents, reasoning, arguments of calls, tools."""
    tools = json.dumps(_changed(json.loads(record.tools), change), ensure_ascii=False) if record.tools else ""
    if isinstance(record, PreferencePair):
        prompt = tuple(_changed_message(message, change) for message in record.prompt)
        return PreferencePair(prompt, change(record.chosen), change(record.rejected), tools)
    return Conversation(tuple(_changed_message(message, change) for message in record.messages), tools)


def _changed_message(message: Message, change: Change) -> Message:
    return replace(
        message,
        content=change(message.content),
        reasoning=change(message.reasoning),
        tool_calls=tuple(_changed(call, change) for call in message.tool_calls),
    )


def _changed(value: Any, change: Change) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(of, change) for name, of in value.items()}
    return [_changed(of, change) for of in value] if isinstance(value, list) else value


def record_text(record: Talk) -> str:
    """All that is said in a record, without tools and the rejected answer: what near-duplicate search and
    decontamination read.
    """
    messages = record.prompt if isinstance(record, PreferencePair) else record.messages
    answer = [record.chosen] if isinstance(record, PreferencePair) else []
    return "\n\n".join([*filter(None, map(_said, messages)), *answer])


def _said(message: Message) -> str:
    calls = [json.dumps(call, ensure_ascii=False) for call in message.tool_calls]
    return "\n".join(filter(None, (message.reasoning, message.content, *calls)))


def record_fields(record: Talk) -> dict[str, Any]:
    """A record as JSON can hold it; `record_of` gives it back whole."""
    turns = record.prompt if isinstance(record, PreferencePair) else record.messages
    fields: dict[str, Any] = {"turns": [vars(message) for message in turns], "tools": record.tools}
    if isinstance(record, PreferencePair):
        fields |= {"chosen": record.chosen, "rejected": record.rejected}
    return fields


def record_of(fields: Mapping[str, Any]) -> Talk:
    """The reverse of `record_fields`."""
    turns = tuple(Message(**{**turn, "tool_calls": tuple(turn["tool_calls"])}) for turn in fields["turns"])
    if "chosen" in fields:
        return PreferencePair(turns, fields["chosen"], fields["rejected"], fields["tools"])
    return Conversation(turns, fields["tools"])


_WHITE_SPACE = re.compile(r"\s+")


def duplicate_key(record: Talk) -> str:
    """Equal for records that say the same up to letter case and white space, roles and tools included.

    Arguments of calls count in any order of their names.
    """
    if isinstance(record, PreferencePair):
        return hashed_id("pair", *_normal(record.prompt), _folded(record.chosen), _folded(record.rejected))
    return hashed_id("conversation", *_normal(record.messages), record.tools)


def _normal(messages: Iterable[Message]) -> list[str]:
    return [
        part
        for message in messages
        for part in (
            message.role,
            _folded(message.reasoning),
            _folded(message.content),
            json.dumps(list(message.tool_calls), ensure_ascii=False, sort_keys=True),
        )
    ]


def _folded(text: str) -> str:
    return _WHITE_SPACE.sub(" ", text).strip().casefold()


def judge_record(record: Talk, language: str) -> tuple[str, str]:
    """("", "") to keep the record, or (reason, detail): broken characters, an answer that repeats itself.

    language: as `detect_language` tells it of `record_text`; it chooses the thresholds.
    """
    answers = [record.chosen] if isinstance(record, PreferencePair) else _answers(record)
    for answer in answers:
        measured = Measured(answer, language)
        for check in RECORD_FILTERS:
            if (detail := check(measured)) is not None:
                return check.__name__, detail
    return "", ""


def _answers(record: Conversation) -> list[str]:
    return [message.content for message in record.messages if message.role == "assistant" and message.content]


def with_tools_told(messages: Iterable[Message], tools: str) -> tuple[Message, ...]:
    """The messages with the tools in their system prompt, for a format that has no other place for them.

    One function a line between <tools> and </tools>, as Qwen's and Hermes' templates tell them.
    """
    messages = tuple(messages)
    if not tools:
        return messages
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in json.loads(tools))
    told = f"You may call these functions:\n<tools>\n{listed}\n</tools>"
    if messages and messages[0].role == "system":
        return (replace(messages[0], content=f"{messages[0].content}\n\n{told}"), *messages[1:])
    return (Message("system", told), *messages)
