"""Text per CPU second: all statistics, the MinHash signature and every rule, ours and datatrove's.

    python tests/benchmarks/corpus_filters.py FOLDER [--rounds 3] [--reference-megabytes 2] [--own-megabytes 30]

FOLDER holds Parquet files with a column of text (see `filter_agreement.py`). Both do the same steps on the same
documents: Gopher repetition, Gopher quality, C4 and FineWeb (Chinese: FineWeb2's thresholds) and the signature of
112 hashes of word 5-grams. Ours streams a Parquet file and uses its own words, datatrove is given its documents as
strings. Each run is a process of its own, by turns; CPU seconds are user and system time, without imports and
compilation. As datatrove is slow, it gets the first megabytes of what ours gets; the column "same text" is ours on
those alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 256
STEPS = ("gopher_repetition", "gopher_quality", "c4_fineweb", "fineweb")


def main() -> None:
    """Write the texts, run both by turns, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference-megabytes", type=float, default=2)
    parser.add_argument("--own-megabytes", type=float, default=30)
    arguments = parser.parse_args()
    print("| language | who | MB | MB per CPU s | peak MB of memory | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for language in ("en", "zh"):
            few, many = Path(folder) / f"few_{language}.parquet", Path(folder) / f"many_{language}.parquet"
            _write(arguments.folder, language, few, arguments.reference_megabytes)
            _write(arguments.folder, language, many, arguments.own_megabytes)
            runs = {"datatrove": few, "ours, same text": few, "ours": many}
            found: dict[str, list[dict]] = {who: [] for who in runs}
            for _ in range(arguments.rounds):
                for who, path in runs.items():
                    found[who].append(_run(who.split(",")[0], language, path))
            _print(language, found)


def _print(language: str, found: dict[str, list[dict]]) -> None:
    best = {who: min(results, key=lambda result: result["seconds"]) for who, results in found.items()}
    speed = {who: result["megabytes"] / result["seconds"] for who, result in best.items()}
    for who, result in best.items():
        print(
            f"| {language} | {who} | {result['megabytes']:.1f} | {speed[who]:.2f} | {result['peak']:.0f} | {speed[who] / speed['datatrove']:.0f} |",
            flush=True,
        )


def _write(folder: Path, language: str, path: Path, megabytes: float) -> None:
    """Texts of this language, drawn evenly over all documents, again and again if there are too few."""
    from tests.benchmarks.filter_agreement import documents

    texts = [text for text in documents(folder, language, 10**6) if text]
    step, size, rows = 7919, 0, []
    for turn in range(10**9):
        text = texts[turn * step % len(texts)]
        size += len(text.encode())
        rows.append(text)
        if size >= megabytes * 1e6:
            break
    table = pa.table({"text": pa.array(rows, pa.large_string())})
    pq.write_table(table, path, compression="zstd", row_group_size=1024)


def _run(who: str, language: str, path: Path) -> dict:
    command = [sys.executable, __file__, "--one", who, language, str(path)]
    repository = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": repository}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _one(who: str, language: str, path: Path) -> None:
    pa.set_cpu_count(1)
    start = {"ours": _ready_ours, "datatrove": _ready_datatrove}[who](language)
    before = time.process_time()
    megabytes = start(path) / 1e6
    seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"megabytes": megabytes, "seconds": seconds, "peak": peak}))


def _ready_ours(language: str):
    from stages.corpus_prep.measuring.judging import judge
    from stages.corpus_prep.measuring.measures import measure
    from stages.corpus_prep.measuring.rules import choose_rules

    measure(pa.array(["A few words, to compile each loop once."], pa.large_string()))
    sets = ("gopher_quality", "gopher_repetition", "c4_fineweb", "fineweb")
    rules = choose_rules(sets if language == "en" else ("fineweb2_zh", "c4_fineweb"))

    def run(path: Path) -> int:
        size = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
                texts = batch.column(0).cast(pa.large_string())
                size += texts.nbytes
                judge(measure(texts), rules)
        return size

    return run


def _ready_datatrove(language: str):
    import xxhash
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature

    from tests.stages.corpus_prep.measuring.datatrove_reference import LANGUAGES, reference_filters

    filters = reference_filters(language)
    signer = MinhashDedupSignature(output_folder=tempfile.mkdtemp(), language=LANGUAGES[language])
    signer._hash_func = lambda words: xxhash.xxh64_intdigest(words.encode())  # as xxhash 4 wants it
    for name in STEPS:  # loads dictionaries
        filters[name](Document(text="Some words. 一些词。", id="0"))

    def run(path: Path) -> int:
        size = 0
        for number, text in enumerate(pq.read_table(path)["text"].to_pylist()):
            size += len(text.encode())
            for name in STEPS:
                filters[name](Document(text=text, id=str(number)))
            shingles = signer.get_shingles(text)
            if shingles.size:
                signer.get_signature(shingles)
        return size

    return run


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
