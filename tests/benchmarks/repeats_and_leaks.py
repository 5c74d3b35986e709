"""Leaked benchmark questions and repeated text: what is found, and megabytes per CPU second.

    python tests/benchmarks/repeats_and_leaks.py DATA_FOLDER

Takes `pretrain/*.parquet` and `benchmarks/*.parquet` of that folder. Every question (long enough for the rules) is planted
once in a document, disguised in turn; all must be found. Prints Markdown tables. Run by hand: timings are not tests.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.decontamination import ContaminationIndex, LeakRules
from stages.corpus_prep.duplicates.partitioned_files import PartitionedFiles, create_hash_files
from stages.corpus_prep.duplicates.repeat_counts import read_shared, share_repeated
from stages.corpus_prep.duplicates.repeated_runs import RepeatedRuns
from stages.corpus_prep.duplicates.repeated_spans import RepeatedHashes, RepeatedSpans, Unit
from stages.corpus_prep.duplicates.words import split_words

TEXTS = ("wiki_en", "books_en", "peps_en", "laws_zh", "web_zh", "classical_modern_zh", "tech_docs_d2l_zh")
QUESTIONS = {
    "gsm8k_test": "question",
    "mmlu_test": "question",
    "hellaswag_val1000": "query",
    "arc_easy_test": "query",
    "cmmlu_test": "Question",
    "ceval_val": "question",
}
BATCH_ROWS = 256
ROUNDS = 3


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def fastest(work: Callable[[], object]) -> float:
    """CPU seconds of the best of three rounds."""
    times = []
    for _ in range(ROUNDS):
        before = cpu_seconds()
        work()
        times.append(cpu_seconds() - before)
    return min(times)


def read_texts(folder: Path, name: str) -> pa.Array:
    table = pq.read_table(folder / "pretrain" / f"{name}.parquet")
    column = "text" if "text" in table.column_names else "target"
    return table[column].cast(pa.large_string()).combine_chunks()


def batches(texts: pa.Array) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """(texts, their numbers)."""
    for begin in range(0, len(texts), BATCH_ROWS):
        batch = texts[begin : begin + BATCH_ROWS]
        yield batch, np.arange(begin, begin + len(batch))


def read_questions(folder: Path) -> list[tuple[str, str]]:
    return [
        (f"{name} {number}", text)
        for name, column in QUESTIONS.items()
        for number, text in enumerate(
            pq.read_table(folder / "benchmarks" / f"{name}.parquet")[column].to_pylist()
        )
    ]


def disguised(text: str, number: int) -> str:
    """As it is, in capitals, without punctuation, broken into lines, or in full width."""
    return (
        text,
        text.upper(),
        "".join(c if c.isalnum() else " " for c in text),
        "\n".join(text.split()),
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    )[number % 5]


def planted_leaks(index: ContaminationIndex, questions: list[tuple[str, str]], hosts: pa.Array) -> None:
    """Plant every question that the index holds, and say which were missed."""
    held, texts = dict(questions), []
    for number, name in enumerate(index.names):
        host = hosts[number % len(hosts)].as_py()
        middle = len(host) // 2
        texts.append(f"{host[:middle]}\n{disguised(held[name], number)}\n{host[middle:]}")
    leaks = index.find_batch(pa.array(texts, pa.large_string()))
    found = {(document, item) for document, item in zip(leaks.document, leaks.item, strict=True)}
    missed = [index.names[i] for i in range(len(texts)) if (i, i) not in found]
    print(f"planted {len(texts):,}, found {len(texts) - len(missed):,}; missed: {missed[:10]}")
    print(f"too short for the rules: {index.num_too_short} of {len(questions):,}\n")


def spans(unit: Unit, texts: pa.Array) -> int:
    """Bytes that two passes cut out."""
    repeated = RepeatedSpans(unit, 30)
    with tempfile.TemporaryDirectory() as folder:
        found = counted(Path(folder), texts, repeated.note)
    return sum(repeated.find(batch, numbers, found).num_bytes for batch, numbers in batches(texts))


def runs(texts: pa.Array) -> int:
    """Bytes that three passes cut out."""
    repeated = RepeatedRuns(50)
    with tempfile.TemporaryDirectory() as folder:
        marks = counted(Path(folder) / "marks", texts, repeated.note)
        found = counted(Path(folder) / "runs", texts, lambda t, n, f: repeated.note_runs(t, n, marks, f))
    return sum(repeated.find(batch, numbers, found).num_bytes for batch, numbers in batches(texts))


def counted(
    folder: Path, texts: pa.Array, note: Callable[[pa.Array, np.ndarray, PartitionedFiles], None]
) -> RepeatedHashes:
    """What several documents hold of what `note` writes."""
    files, found = create_hash_files(folder / "noted"), folder / "counted"
    for batch, numbers in batches(texts):
        note(batch, numbers, files)
    found.mkdir()
    originals = np.arange(len(texts))
    share_repeated([files], np.array([0, len(texts)]), originals, range(files.num_partitions), 1, found)
    return read_shared([found], 0, 1)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    folder = parser.parse_args().data
    questions = read_questions(folder)
    index = ContaminationIndex(questions)
    longer = ContaminationIndex(questions, LeakRules(long_run_characters=20))
    planted_leaks(index, questions, read_texts(folder, "web_zh"))
    print(
        "| text | MB | words | decontamination | documents with leaks (Chinese runs of 13 / 20) | lines | cut | "
        "paragraphs | cut | runs of 50 words | cut |\n|" + "---|" * 11
    )
    for name in TEXTS:
        texts = read_texts(folder, name)
        size = texts.nbytes / 1e6
        cells = [name, f"{size:.1f}", f"{size / fastest(lambda t=texts: split_words(t)):.0f}"]
        cells.append(f"{size / fastest(lambda t=texts: [index.find_batch(b) for b, _ in batches(t)]):.0f}")
        cells.append(" / ".join(str(len(set(i.find_batch(texts).document))) for i in (index, longer)))
        for work in (lambda t: spans("line", t), lambda t: spans("paragraph", t), runs):
            cut = work(texts)
            cells += [f"{size / fastest(lambda t=texts, w=work: w(t)):.0f}", f"{cut / 1e4 / size:.1f} %"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
