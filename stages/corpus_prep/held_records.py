"""The user's conversations and preference pairs, held in bounded memory, and as JSON between shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stages.corpus_prep.reading.record_forms import Conversation
from stages.corpus_prep.sampling import Smallest
from stages.corpus_prep.screening.screen_records import Talk, record_fields, record_of


@dataclass
class HeldRecord:
    """A record and where it was read. begin, end: as in `rows.ReadRow`."""

    record: Talk
    licence: str = ""
    origin: str = ""
    begin: int = -1
    end: int = -1
    copies: int = 0
    """How many others of its source say the same."""


Held = dict[str, Smallest[HeldRecord]]
"""Source -> its records by the key that equal ones share."""


@dataclass
class Records:
    """Conversations and pairs by source, the ones with the smallest keys.

    Copies are counted exactly for every record that is held in the end, however the sources are cut into
    shards: it is among the smallest of every part that has it, so no part lets go of it.
    """

    max_conversations: int
    max_preferences: int
    conversations: Held = field(default_factory=dict)
    preferences: Held = field(default_factory=dict)

    def add(self, source: str, key: str, held: HeldRecord) -> None:
        """Offer one record; of equal ones the first stays."""
        if isinstance(held.record, Conversation):
            sample = self.conversations.setdefault(source, Smallest(self.max_conversations))
        else:
            sample = self.preferences.setdefault(source, Smallest(self.max_preferences))
        if (first := sample.get(key)) is not None:
            first.copies += 1 + held.copies
        else:
            sample.add(key, held)

    def write(self, path: Path) -> None:
        """As JSON lines, for `read`."""
        with path.open("w", encoding="utf-8") as file:
            for held in (self.conversations, self.preferences):
                for source, sample in held.items():
                    for key, item in sample.items():
                        fields = {**vars(item), "record": record_fields(item.record)}
                        file.write(json.dumps([source, key, fields], ensure_ascii=False) + "\n")

    def read(self, path: Path) -> None:
        """Offer the records that `write` wrote."""
        with path.open(encoding="utf-8") as file:
            for line in file:
                source, key, fields = json.loads(line)
                self.add(source, key, HeldRecord(**{**fields, "record": record_of(fields["record"])}))

    def __iter__(self) -> Iterator[tuple[str, Talk]]:
        """(source, record) in a fixed order."""
        for held in (self.conversations, self.preferences):
            for source, sample in held.items():
                yield from ((source, item.record) for _, item in sample.items())
