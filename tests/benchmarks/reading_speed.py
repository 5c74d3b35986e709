"""Megabytes of text per CPU second that the readers give, as rows and as Arrow batches, against plain readers.

    python tests/benchmarks/reading_speed.py PARQUET... [--megabytes 60] [--long-line GIGABYTES]

Each Parquet file (with a column `text`) is repeated to the size and written again as Parquet and as JSON Lines.
"rows to Arrow" makes batches of the rows, as whoever goes on in Arrow must. The references are what pyarrow
and json give without places, titles and licences: `iter_batches`, and `json.loads` line by line.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.reading.batches import read_batches
from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.pieces import pieces
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.record_forms import Document, recognise
from stages.corpus_prep.reading.sources import SourceFile, kind_of

ROUNDS = 3
HELD_CHARACTERS = 4_000_000


def as_file(path: Path) -> SourceFile:
    """A source file of that path."""
    return SourceFile(path.name, path, kind_of(path), origin=path.name)


def reference(file: SourceFile) -> None:
    """The library alone."""
    if file.kind == ".parquet":
        with pq.ParquetFile(file.path) as table:
            for _ in table.iter_batches(batch_size=1024, columns=["text"], use_threads=False):
                pass
    else:
        with file.path.open("rb") as stream:
            for line in stream:
                json.loads(line)


def rows(file: SourceFile) -> None:
    """Rows as dicts."""
    for piece in pieces(file):
        for _ in read_piece(piece, ReadNotes()):
            pass


def rows_to_arrow(file: SourceFile) -> None:
    """Rows as dicts, recognised and put into Arrow arrays."""
    held: list[tuple[Any, ...]] = []
    num_characters = 0
    for piece in pieces(file):
        for row in read_piece(piece, ReadNotes()):
            form = recognise(row.fields)
            record = form.convert(row.fields) if form is not None else None
            assert isinstance(record, Document)
            held.append((record.text, record.title, row.begin, row.end))
            num_characters += len(record.text)
            if num_characters > HELD_CHARACTERS:
                texts, titles, *places = zip(*held, strict=True)
                (
                    pa.array(texts, pa.large_string()),
                    pa.array(titles, pa.large_string()),
                    *map(pa.array, places),
                )
                held, num_characters = [], 0


def batches(file: SourceFile) -> None:
    """Arrow batches."""
    for piece in pieces(file):
        for part in read_batches(piece, ReadNotes()):
            assert isinstance(part, pa.RecordBatch), "not all of it are plain documents"


WAYS: dict[str, Callable[[SourceFile], None]] = {
    "library alone": reference,
    "rows": rows,
    "rows to Arrow": rows_to_arrow,
    "batches": batches,
}


def best_seconds(file: SourceFile) -> dict[str, float]:
    """CPU seconds of each way, the best of several rounds, taken by turns."""
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            start = time.process_time()
            way(file)
            best[name] = min(best[name], time.process_time() - start)
    return best


def measure(source: Path, megabytes: int, folder: Path) -> None:
    """Two rows of the table."""
    listed = pq.read_table(source).to_pylist()
    size = sum(len(row["text"].encode()) for row in listed)
    times = max(1, int(megabytes * 1e6 / size))
    parquet, lines = folder / f"{source.stem}.parquet", folder / f"{source.stem}.jsonl"
    pq.write_table(pa.Table.from_pylist(listed * times), parquet, compression="zstd", row_group_size=4096)
    with lines.open("w", encoding="utf-8") as out:
        for _ in range(times):
            out.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in listed)
    for path in (parquet, lines):
        speeds = {name: size * times / 1e6 / s for name, s in best_seconds(as_file(path)).items()}
        told = " | ".join(f"{speed:,.0f}" for speed in speeds.values())
        print(f"| {path.name} | {size // len(listed):,} | {told} |", flush=True)


def long_line(gigabytes: float, folder: Path) -> None:
    """A file of one line, with holes on the disk, read as text and as JSON Lines; prints time and memory."""
    for name in ("long.txt", "long.jsonl"):
        path = folder / name
        with path.open("wb") as out:
            out.write(b'{"text": "')
            out.truncate(int(gigabytes * 2**30))
        notes = ReadNotes(on_damage="skip")
        start = time.process_time()
        num_rows = num_pieces = 0
        for piece in pieces(as_file(path)):
            num_pieces += 1
            num_rows += sum(1 for _ in read_piece(piece, notes))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        seconds = time.process_time() - start
        found = "; ".join(f"{reject.reason}: {reject.detail}" for reject in notes.rejects)
        print(
            f"| {name} | {gigabytes:g} GiB | {num_pieces} | {num_rows:,} | {found} | {seconds:.1f} | {memory:.0f} |"
        )
        path.unlink()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parquet", type=Path, nargs="*")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--long-line", type=float, default=0, metavar="GIGABYTES")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.long_line:
            print(
                "| one line | size | pieces | rows | noted | CPU s | peak MiB |\n|---|---|---|---|---|---|---|"
            )
            long_line(chosen.long_line, Path(folder))
            print()
        print(f"| file | bytes per text | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
        for source in chosen.parquet:
            measure(source, chosen.megabytes, Path(folder))


if __name__ == "__main__":
    main()
