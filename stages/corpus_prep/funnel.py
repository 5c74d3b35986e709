"""What each step left of the corpus, and what it dropped and why. The steps add up: in = out + dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts import FUNNEL, REJECTS
from data_contracts.tables import PartWriter, write_part

PREVIEW_CHARACTERS = 200

#: In order. `sampled` and `size_limit` leave out good documents that were too many; all other steps drop
#: documents for a reason, and every one of those is a row of the rejects.
STEPS = ("read", "sampled", "repaired", "quality", "deduplicated", "size_limit", "decontaminated")


@dataclass
class Step:
    """Documents and UTF-8 bytes that went into a step and came out."""

    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def take(self, num_bytes: int) -> None:
        """Count one document that goes in."""
        self.documents_in += 1
        self.bytes_in += num_bytes

    def give(self, num_bytes: int) -> None:
        """Count one document that comes out."""
        self.documents_out += 1
        self.bytes_out += num_bytes


@dataclass
class Funnel:
    """Counts per step, and a writer of rejects; `close` writes the last row group."""

    rejects_folder: Path
    steps: dict[str, Step] = field(default_factory=lambda: {name: Step() for name in STEPS})
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._writer = PartWriter(self.rejects_folder, REJECTS)

    def passed(self, step: str, num_bytes: int, bytes_after: int | None = None) -> None:
        """Count a document that went through `step`; bytes_after where the step changed its length."""
        self.steps[step].take(num_bytes)
        self.steps[step].give(num_bytes if bytes_after is None else bytes_after)

    def left_out(self, step: str, num_bytes: int) -> None:
        """Count a document that `step` left out only because there were too many."""
        self.steps[step].take(num_bytes)

    def dropped(self, step: str, reason: str, text: str, detail: str = "", **columns: Any) -> None:
        """Count and record a document that `step` dropped. columns: doc_id, source, title, num_bytes."""
        if step in self.steps:
            self.steps[step].take(columns["num_bytes"])
        self.reasons[step, reason] += 1
        preview = " ".join(text[: 2 * PREVIEW_CHARACTERS].split())[:PREVIEW_CHARACTERS]
        self.examples.setdefault((step, reason), columns["title"] or preview)
        row = {"step": step, "reason": reason, "detail": detail, "preview": preview, **columns}
        self._writer.write(row)

    def close(self) -> None:
        """Finish the rejects file."""
        self._writer.__exit__()

    def write(self, folder: Path) -> None:
        """Write the funnel part."""
        rows = (
            {"position": position, "step": name, **vars(self.steps[name])}
            for position, name in enumerate(STEPS)
        )
        write_part(folder, FUNNEL, rows)
