"""The user's conversations and preference pairs, held in bounded memory, and as JSON between shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.corpus_prep.reading.messages import Message
from stages.corpus_prep.reading.record_forms import Conversation, PreferencePair
from stages.corpus_prep.sampling import Smallest, hashed_id


@dataclass
class Records:
    """Conversations and pairs by source, the ones with the smallest ids."""

    max_conversations: int
    max_preferences: int
    conversations: dict[str, Smallest[Conversation]] = field(default_factory=dict)
    preferences: dict[str, Smallest[PreferencePair]] = field(default_factory=dict)

    def add(self, source: str, key: str, record: Conversation | PreferencePair) -> None:
        """Offer one record."""
        if isinstance(record, Conversation):
            self.conversations.setdefault(source, Smallest(self.max_conversations)).add(key, record)
        else:
            self.preferences.setdefault(source, Smallest(self.max_preferences)).add(key, record)

    def write(self, path: Path) -> None:
        """As JSON lines, for `read`."""
        with path.open("w", encoding="utf-8") as file:
            for held in (self.conversations, self.preferences):
                for source, sample in held.items():
                    for key, record in sample.items():
                        file.write(json.dumps([source, key, _as_json(record)], ensure_ascii=False) + "\n")

    def read(self, path: Path) -> None:
        """Offer the records that `write` wrote."""
        with path.open(encoding="utf-8") as file:
            for line in file:
                source, key, fields = json.loads(line)
                self.add(source, key, _from_json(fields))

    def __iter__(self) -> Iterator[tuple[str, Conversation | PreferencePair]]:
        """(source, record) in a fixed order."""
        for held in (self.conversations, self.preferences):
            for source, sample in held.items():
                yield from ((source, record) for _, record in sample.items())


def record_id(kind: str, messages: Iterable[Message]) -> str:
    """Id of a record: a hash of what is said in it."""
    return hashed_id(kind, *(json.dumps(message.as_row(), ensure_ascii=False) for message in messages))


def _as_json(record: Conversation | PreferencePair) -> dict[str, Any]:
    if isinstance(record, Conversation):
        return {"messages": [vars(message) for message in record.messages], "tools": record.tools}
    prompt = [vars(message) for message in record.prompt]
    answers = {"chosen": record.chosen, "rejected": record.rejected}
    return {"prompt": prompt, **answers, "tools": record.tools}


def _from_json(fields: dict[str, Any]) -> Conversation | PreferencePair:
    turns = tuple(
        Message(**{**turn, "tool_calls": tuple(turn["tool_calls"])})
        for turn in fields.get("messages", fields.get("prompt"))
    )
    if "messages" in fields:
        return Conversation(turns, fields["tools"])
    return PreferencePair(turns, fields["chosen"], fields["rejected"], fields["tools"])
