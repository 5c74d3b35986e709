"""What becomes of the rows of training sets: how many are taken, and how many refused, by reason.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/record_forms.py FOLDER [--show REASON]

FOLDER is searched for .parquet, .jsonl and .jsonl.gz. With --show, ten rows of that reason are printed.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.corpus_prep.benchmark_forms import looks_like_benchmark
from stages.corpus_prep.reading.record_forms import Refused, recognise


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """All rows of one file."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as lines:
        yield from map(json.loads, lines)


def judged(path: Path) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """(form, "taken" or the reason, row, detail) of each row."""
    for row in rows_of(path):
        form = recognise(row)
        if form is None:
            yield ("benchmark" if looks_like_benchmark(row) else "-"), "unknown_fields", row, ", ".join(row)
            continue
        record = form.convert(row)
        refused = record if isinstance(record, Refused) else None
        yield form.name, refused.reason if refused else "taken", row, refused.detail if refused else ""


def main(folder: Path, show: str) -> None:
    """Print the table, or rows of one reason."""
    print("| file | form | rows | taken | refused |\n|---|---|---|---|---|")
    shown = 0
    for path in sorted(p for p in folder.rglob("*") if p.name.endswith((".parquet", ".jsonl", ".jsonl.gz"))):
        counts: Counter[str] = Counter()
        forms: Counter[str] = Counter()
        for form, verdict, row, detail in judged(path):
            counts[verdict] += 1
            forms[form] += 1
            if verdict == show and shown < 10:
                shown += 1
                print(f"  [{detail}] {json.dumps(row, ensure_ascii=False, default=str)[:1500]}")
        refused = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if reason != "taken")
        name = path.relative_to(folder)
        print(f"| {name} | {', '.join(forms)} | {forms.total()} | {counts['taken']} | {refused} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3] if sys.argv[2:3] == ["--show"] else "")
