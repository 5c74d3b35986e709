"""A line of several gigabytes in every kind of file that has lines: what becomes of it, and the memory that it took.

    python tests/benchmarks/huge_lines.py [--gigabytes 4] [--folder FOLDER]

Files are written as a stream, read piece by piece as the stage reads them, each in a process of its own, and deleted.
Prints a Markdown table. Run by hand: it needs as much disk as the line is long.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from stages.corpus_prep.reading.batches import read_batches
from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.pieces import pieces
from stages.corpus_prep.reading.sources import SourceFile

WORDS = b"The old lamp burns all night in the window of the keeper's house, and far ships can see it from the bay. "
BLOCK = WORDS * (1 + (1 << 20) // len(WORDS))
NEXT = "a line after it"


def running(num_bytes: int) -> Iterator[bytes]:
    for _ in range(num_bytes // len(BLOCK)):
        yield BLOCK


def in_quotes(before: bytes, after: bytes) -> Callable[[int], Iterator[bytes]]:
    def made(num_bytes: int) -> Iterator[bytes]:
        yield before
        yield from running(num_bytes)
        yield after

    return made


#: Kind of file -> what it is made of: the long line, and where the kind has records a short one behind it.
FILES: dict[str, Callable[[int], Iterator[bytes]]] = {
    ".txt": running,
    ".md": running,
    ".jsonl": in_quotes(b'{"text": "', f'"}}\n{{"text": "{NEXT}"}}\n'.encode()),
    ".csv": in_quotes(b'title,text\n1,"', f'"\n2,{NEXT}\n'.encode()),
    ".tsv": in_quotes(b"title\ttext\n1\t", f"\n2\t{NEXT}\n".encode()),
    ".json": in_quotes(b'[{"text": "', b'"}]'),
    ".html": in_quotes(b"<html><body><p>", b"</p></body></html>"),
}


def read(path: Path, answer: object) -> None:
    """Read all pieces of a file; send what came and what it took."""
    file = SourceFile(path.name, path, path.suffix, origin=path.name)
    notes, counts = ReadNotes(on_damage="skip"), Counter[str]()
    for piece in pieces(file):
        for found in read_batches(piece, notes):
            is_batch = isinstance(found, pa.RecordBatch)
            texts = found.column("text").to_pylist() if is_batch else [row.fields["text"] for row in found]
            counts["documents"] += len(texts)
            counts["bytes"] += sum(len(text.encode()) for text in texts)
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = "; ".join(f"{reject.reason}: {reject.detail}" for reject in notes.rejects)
    answer.send((counts, told, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))  # type: ignore[attr-defined]


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args()
    print("| file | GB | documents | GB read | CPU s | peak MB | noted |\n|---|---|---|---|---|---|---|")
    spawn = multiprocessing.get_context("spawn")
    for kind, make in FILES.items():
        path = chosen.folder / f"huge_line_{time.time_ns()}{kind}"
        try:
            with path.open("wb") as out:
                for data in make(int(chosen.gigabytes * 1e9)):
                    out.write(data)
            here, there = spawn.Pipe()
            process = spawn.Process(target=read, args=(path, there))
            process.start()
            there.close()
            counts, told, seconds, peak = here.recv()
            process.join()
            size = path.stat().st_size / 1e9
            print(
                f"| {kind} | {size:.1f} | {counts['documents']:,} | {counts['bytes'] / 1e9:.2f} | {seconds:.0f} | "
                f"{peak:,.0f} | {told} |",
                flush=True,
            )
        finally:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
