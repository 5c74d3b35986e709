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
        chosen, rejected = (
            _changed_message(answer, change) if answer is not None else None
            for answer in (record.chosen, record.rejected)
        )
        return PreferencePair(prompt, chosen, rejected, tools)
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
    """All that is said in a record, without tools and the rejected answer: what decontamination reads."""
    if isinstance(record, Conversation):
        said = record.messages
    else:
        said = (*record.prompt, *([record.chosen] if record.chosen is not None else []))
    return "\n\n".join(filter(None, map(message_text, said)))


def message_text(message: Message) -> str:
    """All that is said in a message: reasoning, content, calls as JSON."""
    calls = [json.dumps(call, ensure_ascii=False) for call in message.tool_calls]
    return "\n".join(filter(None, (message.reasoning, message.content, *calls)))


def record_fields(record: Talk) -> dict[str, Any]:
    """A record as JSON can hold it; `record_of` gives it back whole."""
    turns = record.prompt if isinstance(record, PreferencePair) else record.messages
    fields: dict[str, Any] = {"turns": [vars(message) for message in turns], "tools": record.tools}
    if isinstance(record, PreferencePair):
        answers = {"chosen": record.chosen, "rejected": record.rejected}
        fields |= {side: vars(answer) if answer is not None else None for side, answer in answers.items()}
    return fields


def record_of(fields: Mapping[str, Any]) -> Talk:
    """The reverse of `record_fields`."""
    turns = tuple(map(_message_of, fields["turns"]))
    if "chosen" in fields:
        chosen, rejected = (
            _message_of(fields[name]) if fields[name] is not None else None for name in ("chosen", "rejected")
        )
        return PreferencePair(turns, chosen, rejected, fields["tools"])
    return Conversation(turns, fields["tools"])


def _message_of(fields: Mapping[str, Any]) -> Message:
    lists = {name: tuple(fields[name]) for name in ("tool_calls", "call_ids")}
    return Message(**{**fields, **lists})


_WHITE_SPACE = re.compile(r"\s+")


def duplicate_key(record: Talk) -> str:
    """Equal for records that say the same up to letter case and white space, roles and tools included.

    Arguments of calls count in any order of their names, ids of calls do not.
    """
    if isinstance(record, PreferencePair):
        said = _normal((*record.prompt, *record.answers))
        return hashed_id(record.side, *said, *filter(None, [record.tools]))
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
    spoken = record.messages if isinstance(record, Conversation) else record.answers[:1]
    if isinstance(record, PreferencePair) and record.chosen is None:
        spoken = ()  # what is wrong with a bad answer may be just that
    for answer in _answers(spoken):
        measured = Measured(answer, language)
        for check in RECORD_FILTERS:
            if (detail := check(measured)) is not None:
                return check.__name__, detail
    return "", ""


def _answers(messages: Iterable[Message]) -> list[str]:
    return [message.content for message in messages if message.role == "assistant" and message.content]
