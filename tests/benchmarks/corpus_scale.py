"""Corpus prep on corpora of growing size: is time linear, does memory stay flat?

    python tests/benchmarks/corpus_scale.py TEXTS.parquet [MORE.parquet ...] [--gigabytes 0.1 1 10] [--plot FILE.png] [--settings JSON]

Each corpus is made of the given texts, again and again, with a sixth of all words (Chinese: of all characters)
exchanged, so that no copy is a near-duplicate of another. It is kept in --folder, and the stage runs on it as a
program of its own. Memory is the most that any process held, sampled four times a second (`VmHWM`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

EXCHANGED = 1 / 6
ROWS_PER_GROUP = 1000
FILE_BYTES = 1 << 30
SCHEMA = pa.schema({"title": pa.string(), "text": pa.large_string()})
LITTLE_TALK = {
    "num_tool_conversations": 200,
    "num_question_conversations": 200,
    "num_derived_preferences": 50,
}
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Measured:
    """One run of the stage."""

    megabytes: float
    seconds: float
    cpu_seconds: float
    peak_megabytes: float
    documents: int
    num_processes: int


def texts_of(paths: Sequence[Path]) -> list[str]:
    """All texts of the files, those over 20 KB in pieces."""
    texts = []
    for path in paths:
        column = next(c for c in ("text", "target", "paragraphs") if c in pq.read_schema(path).names)
        for value in pq.read_table(path, columns=[column]).column(0).to_pylist():
            whole = "\n".join(value) if isinstance(value, list) else value
            texts += [whole[start : start + 20_000] for start in range(0, len(whole), 20_000)]
    return [text for text in texts if len(text) > 200]


class Perturbed:
    """Copies of texts with words exchanged. A text is held as numbers of its words, so that a copy is made by
    Arrow and not word by word."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self.random = np.random.default_rng(seed)
        parts = [re.findall("[\u4e00-\u9fff]|[^\u4e00-\u9fff\\s]+|\\s+", text) for text in texts]
        self.lengths = np.array([len(words) for words in parts])
        words = pa.array([word for text in parts for word in text], pa.large_string()).dictionary_encode()
        self.words, self.numbers = words.dictionary, words.indices.to_numpy()
        chinese = [len(re.findall("[\u4e00-\u9fff]", text)) > len(text) / 3 for text in texts]
        self.is_chinese = np.repeat(chinese, self.lengths)

    def batches(self) -> Iterator[pa.Array]:
        """Each text once, perturbed, as large_string arrays of ROWS_PER_GROUP."""
        exchanged = self.random.random(len(self.numbers)) < EXCHANGED * np.where(self.is_chinese, 1, 2)
        copy = self.numbers.copy()
        for chinese in (False, True):
            pool = self.numbers[self.is_chinese == chinese]
            where = np.flatnonzero(exchanged & (self.is_chinese == chinese))
            copy[where] = pool[self.random.integers(0, max(len(pool), 1), len(where))]
        ends = np.concatenate(([0], np.cumsum(self.lengths)))
        for first in range(0, len(self.lengths), ROWS_PER_GROUP):
            bounds = ends[first : first + ROWS_PER_GROUP + 1]
            words = self.words.take(pa.array(copy[bounds[0] : bounds[-1]]))
            texts = pa.LargeListArray.from_arrays(bounds - bounds[0], words)
            yield pc.binary_join(texts, pa.scalar("", pa.large_string()))


def make_corpus(texts: Sequence[str], folder: Path, size: int) -> int:
    """Write Parquet files with at least `size` bytes of text; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    source, written, number = Perturbed(texts, seed=7), 0, 0
    while written < size:
        end = min(size, written + FILE_BYTES)
        with pq.ParquetWriter(
            folder / f"texts-{number:03d}.parquet", SCHEMA, compression="zstd", compression_level=1
        ) as writer:
            while written < end:
                for copies in source.batches():
                    titles = pa.array([""] * len(copies))
                    writer.write_table(pa.table([titles, copies], schema=SCHEMA))
                    written += pc.sum(pc.binary_length(copies)).as_py()
                    if written >= end:
                        break
        number += 1
    return written


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def peak_of(pid: int) -> int:
    """Most bytes that a process has held so far."""
    try:
        match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(match.group(1)) * 1024 if match else 0


def measure(corpus: Path, folder: Path, workers: int, more: dict[str, object]) -> Measured:
    """Run the stage on a corpus."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "config.json"
    settings = {"sources": [str(corpus)], "max_megabytes": 1e9, "num_workers": workers, **LITTLE_TALK, **more}
    config.write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "stages.corpus_prep",
        "--config",
        str(config),
        "--output",
        str(folder / "out"),
    ]
    before, started = os.times(), time.monotonic()
    with (folder / "log").open("wb") as log:
        program = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        peaks: dict[int, int] = {}
        while program.poll() is None:
            for pid in family(program.pid):
                peaks[pid] = max(peaks.get(pid, 0), peak_of(pid))
            time.sleep(0.25)
    seconds, after = time.monotonic() - started, os.times()
    if program.returncode:
        sys.exit((folder / "log").read_text()[-3000:])
    metrics = json.loads((folder / "out" / "manifest.json").read_text())["metrics"]
    cpu = sum(getattr(after, n) - getattr(before, n) for n in ("children_user", "children_system"))
    size = int((corpus / "bytes").read_text()) / 1e6
    return Measured(size, seconds, cpu, max(peaks.values()) / 1e6, int(metrics["num_documents"]), len(peaks))


def plot(found: Sequence[Measured], path: Path) -> None:
    """Time and memory over size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    sizes = [m.megabytes / 1e3 for m in found]
    left.plot(sizes, [m.seconds for m in found], "o-", color="#3465a4")
    left.set(title="Time", xlabel="text, GB", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    right.plot(sizes, [m.peak_megabytes for m in found], "o-", color="#a40000")
    right.axhline(1000, color="grey", linestyle=":", linewidth=1)
    right.set(
        title="Most memory of one process", xlabel="text, GB", ylabel="MB", xlim=(0, None), ylim=(0, 1100)
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Make the corpora, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[0.1, 1.0, 10.0])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/corpus-scale"))
    parser.add_argument(
        "--settings", type=json.loads, default={}, help='such as {"repeated_line_documents": 10}'
    )
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    texts = texts_of(options.texts)
    found = []
    print(
        "| text, MB | documents kept | s | CPU s | MB per CPU s | most memory, MB | processes |\n|---|---|---|---|---|---|---|"
    )
    for gigabytes in options.gigabytes:
        corpus = options.folder / f"corpus-{gigabytes:g}"
        done = corpus / "bytes"
        if not done.exists():
            done.write_text(str(make_corpus(texts, corpus, int(gigabytes * 1e9))))
        run = measure(corpus, options.folder / "run", options.workers, options.settings)
        found.append(run)
        print(
            f"| {run.megabytes:,.0f} | {run.documents:,} | {run.seconds:.0f} | {run.cpu_seconds:.0f} | "
            f"{run.megabytes / run.cpu_seconds:.1f} | {run.peak_megabytes:.0f} | {run.num_processes} |",
            flush=True,
        )
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
