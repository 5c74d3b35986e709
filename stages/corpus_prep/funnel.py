"""What each step left of the corpus, and what it dropped and why. The steps add up: in = out + dropped."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_contracts import FUNNEL, REJECTS
from data_contracts.tables import PartWriter, part_files, write_part
from stages.corpus_prep.screening.examples import Examples, preview_around

UNKNOWN = {"licence": "", "origin": ""}
#: What a reject says of the document.
LINEAGE = ("doc_id", "source", "title", "licence", "origin", "num_bytes")

#: In order. `sampled` and `size_limit` leave out good documents that were too many; all other steps drop
#: documents for a reason, and every one of those is a row of the rejects.
STEPS = (
    "read",
    "sampled",
    "repaired",
    "repeats_cut",
    "quality",
    "deduplicated",
    "size_limit",
    "decontaminated",
)


@dataclass
class Step:
    """Documents and UTF-8 bytes that went into a step and came out."""

    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def take(self, num_bytes: int, documents: int = 1) -> None:
        """Count documents that go in."""
        self.documents_in += documents
        self.bytes_in += num_bytes

    def give(self, num_bytes: int, documents: int = 1) -> None:
        """Count documents that come out."""
        self.documents_out += documents
        self.bytes_out += num_bytes


@dataclass
class Funnel:
    """Counts per step, and a writer of rejects; `close` writes the last row group."""

    rejects_folder: Path
    steps: dict[str, Step] = field(default_factory=lambda: {name: Step() for name in STEPS})
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: Examples[dict[str, str]] = field(default_factory=Examples)
    """Three documents of each reason: their title, source, detail and preview."""

    def __post_init__(self) -> None:
        self._writer = PartWriter(self.rejects_folder, REJECTS)
        self._num_files = 1

    def passed(self, step: str, num_bytes: int, bytes_after: int | None = None, documents: int = 1) -> None:
        """Count documents that went through `step`; bytes_after where the step changed their length."""
        self.steps[step].take(num_bytes, documents)
        self.steps[step].give(num_bytes if bytes_after is None else bytes_after, documents)

    def left_out(self, step: str, num_bytes: int, documents: int = 1) -> None:
        """Count documents that `step` left out only because there were too many."""
        self.steps[step].take(num_bytes, documents)

    def dropped(self, step: str, reason: str, text: str, detail: str = "", **columns: Any) -> None:
        """Count and record a document that `step` dropped.

        columns: doc_id, source, title, num_bytes; licence and origin where they are known.
        """
        if step in self.steps:
            self.steps[step].take(columns["num_bytes"])
        self.reasons[step, reason] += 1
        preview = preview_around(text, reason, detail)
        row = {"step": step, "reason": reason, "detail": detail, "preview": preview, **UNKNOWN, **columns}
        shown = {name: str(row[name]) for name in ("title", "source", "detail", "preview")}
        self.examples.add(step, reason, columns["doc_id"], shown)
        self._writer.write(row)

    def close(self) -> None:
        """Finish the rejects file."""
        self._writer.__exit__()

    def counts(self) -> dict[str, Any]:
        """Everything but the rejects themselves, as JSON, for `merge`."""
        return {
            "steps": {name: vars(step) for name, step in self.steps.items()},
            "reasons": [[*key, count] for key, count in self.reasons.items()],
            "examples": self.examples.as_rows(),
        }

    def merge(self, counts: Mapping[str, Any], rejects: Path) -> None:
        """Add what the funnel of a shard counted, and take its rejects over."""
        for name, values in counts["steps"].items():
            mine = self.steps[name]
            for field_name, value in values.items():
                setattr(mine, field_name, getattr(mine, field_name) + value)
        for step, reason, count in counts["reasons"]:
            self.reasons[step, reason] += count
        self.examples.merge_rows(counts["examples"])
        if counts["reasons"]:
            for path in part_files(rejects):
                shutil.copyfile(path, self.rejects_folder / f"part-{self._num_files:05d}.parquet")
                self._num_files += 1

    def write(self, folder: Path) -> None:
        """Write the funnel part."""
        rows = (
            {"position": position, "step": name, **vars(self.steps[name])}
            for position, name in enumerate(STEPS)
        )
        write_part(folder, FUNNEL, rows)
