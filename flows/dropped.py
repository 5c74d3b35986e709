"""`glassworks show corpus_prep --dropped REASON`: the documents that a rule dropped, page by page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from data_contracts.tables import part_files
from stages.runtime.errors import UserError, did_you_mean
from stages.runtime.store import Artifact

PART = "rejects"
#: Shown in places of their own; others follow as name=value.
COLUMNS = ("doc_id", "source", "title", "step", "reason", "detail", "num_bytes", "preview")


def show_dropped(artifact: Artifact, reason: str, console: Console, page: int = 1, rows: int = 3) -> None:
    """Print page `page` (from 1, `rows` documents each) of what was dropped for `reason`.

    reason: as the rejects name it; `step/reason` tells two steps with the same reason apart. Raises UserError
    for an artifact without rejects, for a reason that dropped nothing, and for a page that is not there.
    """
    folder = _rejects_of(artifact)
    counts = count_reasons(folder)
    step, _, name = reason.rpartition("/")
    total = sum(n for (s, r), n in counts.items() if r == name and step in ("", s))
    if total == 0:
        raise _unknown(reason, counts)
    pages = -(-total // rows)
    if not 1 <= page <= pages:
        raise UserError(
            f"page {page} of {pages}: {total:,} documents were dropped for {reason}, {rows} a page",
            hint=f"--page 1 to {pages}, or more on each: --rows {max(10, 2 * rows)}",
        )
    first = (page - 1) * rows
    console.print(f"[bold]{reason}[/bold]: {total:,} documents, page {page} of {pages}", highlight=False)
    for place, row in enumerate(rows_dropped(folder, step, name, first, rows), start=first + 1):
        _print(row, place, console)
    if page < pages:
        console.print(
            f"next: --dropped {reason} --page {page + 1} --rows {rows}", style="dim", highlight=False
        )


def _rejects_of(artifact: Artifact) -> Path:
    if PART not in artifact.manifest.parts:
        raise UserError(
            f"{artifact.manifest.stage} {artifact.manifest.fingerprint} keeps no rejects",
            hint="they are in corpus_prep: glassworks show corpus_prep --dropped REASON",
        )
    return artifact.part(PART)


def count_reasons(folder: Path) -> Counter[tuple[str, str]]:
    """(step, reason) -> documents, over all files of the rejects part; only those two columns are read."""
    counts: Counter[tuple[str, str]] = Counter()
    for path in part_files(folder):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["step", "reason"]):
                counts.update(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return counts


def _unknown(reason: str, counts: Counter[tuple[str, str]]) -> UserError:
    names: Counter[str] = Counter()
    for (_, name), number in counts.items():
        names[name] += number
    told = ", ".join(f"{name} {number:,}" for name, number in names.most_common())
    close = did_you_mean(reason.rpartition("/")[2], names)
    return UserError(
        f"no document was dropped for {reason!r}{close}",
        hint=f"dropped: {told}" if told else "nothing was dropped from this corpus",
    )


def rows_dropped(folder: Path, step: str, reason: str, first: int, rows: int) -> Iterator[dict[str, Any]]:
    """Rows `first` to `first + rows` of those that a reason dropped, in the order of the files.

    step: "" for any. Memory holds one batch.
    """
    passed = 0
    for path in part_files(folder):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                wanted = pc.equal(batch["reason"], reason)
                if step:
                    wanted = pc.and_(wanted, pc.equal(batch["step"], step))
                found = batch.filter(wanted)
                start = max(0, first - passed)
                yield from found.slice(start, max(0, first + rows - passed - start)).to_pylist()
                passed += found.num_rows
                if passed >= first + rows:
                    return


def _print(row: dict[str, Any], place: int, console: Console) -> None:
    title = row["title"] or row["doc_id"]
    about = f"{row['source']}  {row['num_bytes']:,} bytes  at {row['step']}"
    console.print()
    console.print(Text.assemble((f"{place}. ", "dim"), (title, "bold"), "  ", (about, "dim")), soft_wrap=True)
    if row["detail"]:
        console.print(Text.assemble("   ", (row["detail"], "yellow")), soft_wrap=True)
    console.print(Text.assemble("   ", row["preview"] or "(nothing is left of it)"), soft_wrap=True)
    more = {name: value for name, value in row.items() if name not in COLUMNS and value not in (None, "")}
    if more:  # columns that later versions of the contract add: path, licence, scores
        shown = "  ".join(f"{name}={value}" for name, value in more.items())
        console.print(Text.assemble("   ", (shown, "dim")), soft_wrap=True)
