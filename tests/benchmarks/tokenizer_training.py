"""What learning costs against bare SentencePiece with the same flags: CPU seconds and memory, by turns.

    python tests/benchmarks/tokenizer_training.py FOLDER [--megabytes 20 50 100] [--rounds 3]

Each run is a process of its own. The texts stand in a documents part on disk: ours reads them twice from there
(once for the alphabet), bare SentencePiece once. Prints a Markdown table. Run by hand.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tokenizer_texts as texts_of

WAYS = ("bare", "compact", "copyable")


class Stored:
    """Texts of a Parquet file, read anew each time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.column(0).to_pylist()


def learn(way: str, path: Path, vocab_size: int) -> None:
    """Learn in this process and print its CPU seconds and peak memory in MB."""
    import sentencepiece

    from stages.tokenizer.alphabet import Coverage
    from stages.tokenizer.training import _SETTINGS, Recipe, train_sentencepiece

    recipe = Recipe(Coverage(0.999), word_scheme="copyable" if way == "copyable" else "compact")
    before = resource.getrusage(resource.RUSAGE_SELF)
    if way == "bare":
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in Stored(path) for line in text.split("\n") if line),
            model_writer=io.BytesIO(),
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=0.999,
            user_defined_symbols=recipe.symbols,
            **_SETTINGS,
        )
    else:
        train_sentencepiece(Stored(path), vocab_size, recipe=recipe)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds} {after.ru_maxrss / 1024}")


def measure(way: str, path: Path, vocab_size: int) -> tuple[float, float]:
    """CPU seconds and peak MB of a process of its own."""
    command = [sys.executable, __file__, str(path), "--way", way, "--vocab-size", str(vocab_size)]
    seconds, megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(megabytes)


def main() -> None:
    """Measure by turns and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--megabytes", type=float, nargs="+", default=[20.0, 50.0, 100.0])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--vocab-size", type=int, default=32_000)
    arguments.add_argument("--way", choices=WAYS)
    options = arguments.parse_args()
    if options.way:
        learn(options.way, options.folder, options.vocab_size)
        return
    train, _ = texts_of.split(texts_of.load(options.folder))
    print("| sample | way | CPU seconds (best) | ratio | peak memory | MB per MB over 20 MB |")
    print("|---|---|---|---|---|---|")
    smallest: dict[str, tuple[float, float]] = {}
    for megabytes in options.megabytes:
        sample = texts_of.draw(train, megabytes)
        size = texts_of.num_bytes(sample) / 1e6
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "texts.parquet"
            pq.write_table(pa.table({"text": pa.array(sample, pa.large_string())}), path, row_group_size=512)
            runs: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    runs[way].append(measure(way, path, options.vocab_size))
        bare = min(seconds for seconds, _ in runs["bare"])
        for way in WAYS:
            seconds, memory = min(runs[way])
            first_size, first_memory = smallest.setdefault(way, (size, memory))
            slope = (memory - first_memory) / (size - first_size) if size > first_size else float("nan")
            print(
                f"| {size:.0f} MB | {way} | {seconds:.1f} | {seconds / bare:.2f} | {memory:,.0f} MB | {slope:.1f} |"
            )


if __name__ == "__main__":
    main()
