"""Near-duplicates: which pairs are merged, as exact Jaccard sees them, and what that costs; against datatrove.

    python tests/benchmarks/near_duplicates.py quality DATA_FOLDER [--documents 3000]
    python tests/benchmarks/near_duplicates.py scale [--documents 1000000 5000000] [--duckdb]

`quality` takes Parquet files with a text column, plants copies with changed words and characters, and compares with
Python sets. `scale` makes signatures of which a tenth are near copies and some share a line of boilerplate; each size is
a process of its own, so that its peak memory is its own. Prints Markdown tables. Run by hand: timings are not tests.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.duplicates.candidates import BandFiles
from stages.corpus_prep.duplicates.dedup_index import signature_column
from stages.corpus_prep.duplicates.deduplication import KEPT, Deduplicator
from stages.corpus_prep.duplicates.near_duplicates import NearDuplicates, NearDuplicateSettings

LANGUAGES = {
    "en": ("wiki_en", "c4_web_en", "tinystories_en", "peps_en"),
    "zh": ("web_zh", "laws_zh", "classical_modern_zh", "tech_docs_d2l_zh"),
}
RATES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
MAX_CHARACTERS = 6000
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u9fff]+")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def base_texts(folder: Path, language: str, number: int) -> list[str]:
    """At most `number` texts, the same ones every time."""
    texts: list[str] = []
    for name in LANGUAGES[language]:
        table = pq.read_table(folder / f"{name}.parquet")
        column = "text" if "text" in table.column_names else "target"
        texts += [t[:MAX_CHARACTERS] for t in table[column].to_pylist() if len(t) >= 200]
    random.Random(0).shuffle(texts)
    return texts[:number]


def changed(rng: random.Random, text: str, rate: float, pool: str) -> str:
    """Words (or, without spaces, characters) dropped, doubled, swapped for others or misspelt, at that rate."""
    pieces = re.findall(r"\s+|[\u3400-\u9fff]|[^\s\u3400-\u9fff]+", text)
    for place, piece in enumerate(pieces):
        if piece.isspace() or rng.random() >= rate:
            continue
        letter = rng.choice(pool)
        at = rng.randrange(len(piece))
        pieces[place] = rng.choice(
            ("", f"{piece} {piece}", letter * len(piece), piece[:at] + letter + piece[at + 1 :])
        )
    return "".join(pieces)


def planted(texts: list[str], language: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Every second text with one to three changed copies behind it; (original, copy) pairs."""
    rng = random.Random(1)
    pool = "abcdefghijklmnop" if language == "en" else "的一是在不了有和人这中大为上个国我以要他时"
    documents, pairs = [], []
    for number, text in enumerate(texts):
        original = len(documents)
        documents.append(text)
        for _ in range(rng.choice((1, 1, 2, 3)) if number % 2 else 0):
            pairs.append((original, len(documents)))
            documents.append(changed(rng, text, rng.choice(RATES), pool))
    return documents, pairs


def grams(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams of the simplified text, by Python's own means."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
    words = _WORD.findall(re.sub(r"\d+([.,]\d+)?", "0", plain))
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def jaccard(left: set, right: set) -> float:
    return len(left & right) / len(left | right)


def ours(documents: list[str], threshold: float, folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    """(keeper of each document, figures)."""
    from stages.corpus_prep.measuring.measures import measure, word_hashes

    array = pa.array(documents, pa.large_string())
    measure(array[:2]), word_hashes(array[:2])
    near = NearDuplicates(folder / "near", NearDuplicateSettings(threshold=threshold))
    before = cpu_seconds()
    for begin in range(0, len(array), 256):
        signatures = measure(array[begin : begin + 256])["signature"]
        near.add(signatures.flatten().to_numpy().reshape(len(signatures), -1))
    signed = cpu_seconds() - before

    def fetch(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in range(0, len(numbers), 256):
            yield word_hashes(array.take(pa.array(numbers[begin : begin + 256])))

    survivors, report = near.find(np.arange(len(documents)), fetch)
    seconds = cpu_seconds() - before
    return survivors.keeper, {
        "signatures_cpu_s": signed,
        "cpu_s": seconds,
        "candidates": report.verification.num_candidates,
        "compared exactly": report.verification.num_compared_exactly,
        "largest cluster": report.largest_cluster,
    }


def datatrove(documents: list[str], language: str, folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    """(cluster of each document by its first one, figures) with FineWeb's settings: 14 buckets of 8, unverified."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))  # as FineWeb
    name = {"en": "eng", "zh": "zho"}[language]
    signer = MinhashDedupSignature(str(folder / "sig"), config, language=name)
    signer.get_shingles("A first text to load the tokenizer. 这是一个句子。")
    before = cpu_seconds()
    signer.run((Document(text=t, id=str(i)) for i, t in enumerate(documents)), 0, 1)
    buckets = MinhashDedupBuckets(str(folder / "sig"), str(folder / "buckets"), config=config)
    for rank in range(config.num_buckets):
        buckets.run(None, rank, config.num_buckets)
    cluster = MinhashDedupCluster(
        str(folder / "buckets"), str(folder / "remove"), config, save_cluster_id=True
    )
    cluster.run(None, 0, 1)
    seconds = cpu_seconds() - before
    keeper = np.arange(len(documents))
    path = folder / "remove" / "000000.clusters"
    first: dict[int, int] = {}
    for document, number in sorted(struct.iter_unpack("<2I", path.read_bytes()) if path.exists() else ()):
        keeper[document] = first.setdefault(number, document)
    return keeper, {"cpu_s": seconds, "largest cluster": int(np.unique(keeper, return_counts=True)[1].max())}


def quality(arguments: argparse.Namespace) -> None:
    """The table of who merges what."""
    limit = arguments.threshold
    print(
        "| text | who | planted pairs | J >= t + 0.1 resolved | J < t - 0.1 merged | within 0.1 as exact | "
        "merges below t - 0.1 | dropped | MB / CPU s | largest cluster |\n|" + "---|" * 10
    )
    for language in LANGUAGES:
        texts = base_texts(arguments.data, language, arguments.documents)
        documents, pairs = planted(texts, language)
        sets = [grams(text) for text in documents]
        similar = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in pairs}
        size = sum(len(text.encode()) for text in documents) / 1e6
        rates = []
        for who, run in (
            ("datatrove", lambda d, f, lang=language: datatrove(d, lang, f)),
            ("ours", lambda d, f: ours(d, limit, f)),
        ):
            with tempfile.TemporaryDirectory() as folder:
                keeper, figures = run(documents, Path(folder))
            print(
                _row(
                    f"{language}, {len(documents):,} documents, {size:.1f} MB",
                    who,
                    keeper,
                    similar,
                    sets,
                    limit,
                    size,
                    figures,
                )
            )
            rates.append(size / figures["cpu_s"])
        print(f"\nours / datatrove: {rates[1] / rates[0]:.0f}; {json.dumps(figures)}\n")


def _row(
    text: str,
    who: str,
    keeper: np.ndarray,
    similar: dict[tuple[int, int], float],
    sets: list[set],
    limit: float,
    size: float,
    figures: dict[str, float],
) -> str:
    merged = {pair: keeper[pair[0]] == keeper[pair[1]] for pair in similar}
    stays = keeper == np.arange(len(keeper))
    above = [not (stays[p[0]] and stays[p[1]]) for p, s in similar.items() if s >= limit + 0.1]
    below = [merged[p] for p, s in similar.items() if s < limit - 0.1]
    # A pair is resolved if one of the two goes: the other may have gone for a third one.
    close = [merged[p] == (s >= limit) for p, s in similar.items() if limit - 0.1 <= s < limit + 0.1]
    gone = np.flatnonzero(keeper != np.arange(len(keeper)))
    strangers = sum(jaccard(sets[g], sets[keeper[g]]) < limit - 0.1 for g in gone)
    return (
        f"| {text} | {who} | {len(similar):,} | {sum(above):,} of {len(above):,} ({100 * np.mean(above):.2f} %) | "
        f"{sum(below)} of {len(below):,} ({100 * np.mean(below):.2f} %) | {100 * np.mean(close):.1f} % of {len(close)} | "
        f"{strangers} of {len(gone):,} | {len(gone):,} | {size / figures['cpu_s']:.2f} | {figures['largest cluster']} |"
    )


def synthetic(number: int, begin: int, end: int) -> np.ndarray:
    """Signatures of documents begin to end: a tenth near copies of the one 7 before, one in 50 with boilerplate."""
    rng = np.random.default_rng([number, begin])
    rows = rng.integers(0, 2**32, (end - begin, 112), np.uint32)
    copies = np.flatnonzero(np.arange(begin, end) % 10 == 9)
    copies = copies[copies >= 7]
    same = rng.random((len(copies), 112)) < rng.uniform(0.5, 1.0, (len(copies), 1))
    rows[copies] = np.where(same, rows[copies - 7], rows[copies])
    rows[np.arange(begin, end) % 50 == 0, 8:24] = 12345  # 4 bands that thousands of strangers share
    return rows


def one_size(number: int) -> dict[str, float]:
    """Figures of one run; making the signatures is not counted."""
    made = 0.0
    with tempfile.TemporaryDirectory() as folder:
        dedup = Deduplicator(Path(folder) / "dedup")
        begun = cpu_seconds()
        for begin in range(0, number, 20_000):
            before = cpu_seconds()
            rows = synthetic(number, begin, min(number, begin + 20_000))
            text_hashes = pa.array([row.tobytes() for row in rows[:, :4]], pa.binary(16))
            signatures = signature_column(rows)
            made += cpu_seconds() - before
            dedup.add(text_hashes, signatures)
        decisions, report = dedup.decide(np.arange(number))
        seconds = cpu_seconds() - begun - made
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "documents": number,
        "cpu_s": seconds,
        "rss_mb": peak,
        "disk_mb": disk / 1e6,
        "candidates": report.verification.num_candidates,
        "dropped": int((decisions.verdict != KEPT).sum()),
        "largest_bucket": report.candidates.largest_bucket,
        "unresolved": report.candidates.num_unresolved,
    }


def duckdb_edges(number: int) -> dict[str, float]:
    """Star edges of the same bands in SQL, unverified, with 600 MB of memory and one thread."""
    import duckdb

    with tempfile.TemporaryDirectory() as folder:
        bands = BandFiles(Path(folder) / "bands", 28, 4)
        for begin in range(0, number, 20_000):
            end = min(number, begin + 20_000)
            bands.append(synthetic(number, begin, end), np.arange(begin, end))
        database = duckdb.connect(
            str(Path(folder) / "db"), config={"memory_limit": "600MB", "threads": 1, "temp_directory": folder}
        )
        database.execute("create table bands (h ubigint, doc uinteger)")
        before = cpu_seconds()
        for partition in range(bands.files.num_partitions):
            records = bands.files.read(partition)
            arrow = pa.table(  # noqa: F841 -- DuckDB finds it by its name
                {"h": np.ascontiguousarray(records["hash"]), "doc": np.ascontiguousarray(records["document"])}
            )
            database.execute("insert into bands select * from arrow")
        query = """with g as (select h, min(doc) m from bands group by h having count(*) > 1)
            select count(*) from (select distinct doc, m from bands join g using (h) where doc <> m)"""
        edges = database.execute(query).fetchone()[0]
        seconds = cpu_seconds() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"documents": number, "cpu_s": seconds, "rss_mb": peak, "candidates": edges}


ONE: dict[str, Callable[[int], dict[str, float]]] = {"ours": one_size, "DuckDB, edges only": duckdb_edges}


def scale(arguments: argparse.Namespace) -> None:
    """The table of sizes; each in a process of its own."""
    print(
        "| documents | who | CPU s | µs per document | peak MB | disk MB | pairs | dropped |\n|" + "---|" * 8
    )
    for number in arguments.documents:
        for who in list(ONE)[: 2 if arguments.duckdb else 1]:
            command = [sys.executable, __file__, "one", who, str(number)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(
                f"| {number:,} | {who} | {figures['cpu_s']:.1f} | {1e6 * figures['cpu_s'] / number:.1f} | "
                f"{figures['rss_mb']:.0f} | {figures.get('disk_mb', 0):.0f} | {figures['candidates']:,} | "
                f"{figures.get('dropped', '')} |",
                flush=True,
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("quality")
    command.add_argument("data", type=Path)
    command.add_argument("--documents", type=int, default=3000)
    command.add_argument("--threshold", type=float, default=0.72)
    command.set_defaults(run=quality)
    command = commands.add_parser("scale")
    command.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 5_000_000])
    command.add_argument("--duckdb", action="store_true")
    command.set_defaults(run=scale)
    command = commands.add_parser("one")
    command.add_argument("who")
    command.add_argument("number", type=int)
    command.set_defaults(run=lambda a: print(json.dumps(ONE[a.who](a.number))))
    arguments = parser.parse_args()
    started = time.time()
    arguments.run(arguments)
    print(f"{time.time() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
