"""Text per CPU second into token ids: our kernels, our whole way to shards, `tokenizers` and SentencePiece.

    python tests/benchmarks/tokenizer_encoding.py FOLDER [--vocab-sizes 4096 32000] [--rounds 3]

FOLDER holds Parquet files whose text is a column `text`, `paragraphs` or `target`; names that end in `_zh`
are Chinese, the others English. A vocabulary of each size is learned from a sample of both. Each engine runs
in a process of its own with one thread, by turns; the best of the rounds counts. For the two libraries only
the call that encodes is timed, not what it takes to make arrays of their lists; for ours everything is: from
Arrow's buffers to an array, or from Parquet to shuffled shards. Prints Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts import DOCUMENTS
from data_contracts.tables import part_files, write_part
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.tokenizer import document_encoder
from stages.tokenizer.hugging_face import tokenizer_json
from stages.tokenizer.shards import ShardSettings, write_shards
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.tokenizer import Tokenizer

ENGINES = ("ours", "ours, to shards", "tokenizers", "sentencepiece")
TEXT_COLUMNS = ("text", "paragraphs", "target")
BATCH_DOCUMENTS = 256


def read_texts(folder: Path, chinese: bool) -> Iterator[str]:
    """The texts of one language."""
    for path in sorted(folder.glob("*.parquet")):
        if path.stem.endswith("_zh") != chinese:
            continue
        names = pq.read_schema(path).names
        column = next((name for name in TEXT_COLUMNS if name in names), None)
        for value in pq.read_table(path, columns=[column]).column(0).to_pylist() if column else []:
            text = "\n".join(value) if isinstance(value, list) else value
            if text:
                yield text


def write_documents(folder: Path, texts: list[str], language: str) -> None:
    """The texts as a documents part, the last one for validation."""
    write_part(
        folder,
        DOCUMENTS,
        (
            {"doc_id": f"{language}-{number}", "source": "benchmark", "title": "", "kind": "text"}
            | {"language": language, "split": "train" if number < len(texts) - 1 else "validation"}
            | {"num_bytes": len(text.encode()), "text": text}
            for number, text in enumerate(texts)
        ),
    )


def batches(documents: Path) -> Iterator[pa.Array]:
    """Texts of the part, some hundred at a time."""
    for path in part_files(documents):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_DOCUMENTS, columns=["text"]):
                yield batch.column(0)


class Clock:
    """Sums CPU seconds, user and system, of all threads, between `with` and its end."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._start = sum(os.times()[:2])

    def __exit__(self, *_: object) -> None:
        self.seconds += sum(os.times()[:2]) - self._start


def measure(engine: str, documents: Path, folder: Path) -> dict[str, float | str]:
    """Encode the part with one engine: CPU seconds, a digest of all ids, peak memory before and after."""
    tokenizer = Tokenizer.from_folder(folder)
    clock, digest = Clock(), hashlib.sha256()
    if engine == "ours, to shards":
        before = to_shards(documents, tokenizer, clock)
        return result(clock, "", before)
    encode = encoder_of(engine, tokenizer, folder, clock)
    encode(pa.array(["warm up"], pa.large_string()))
    clock.seconds, before = 0.0, peak_megabytes()
    for texts in batches(documents):
        for ids in encode(texts):
            digest.update(np.asarray(ids, dtype="<u4").tobytes())
    return result(clock, digest.hexdigest(), before)


def encoder_of(engine: str, tokenizer: Tokenizer, folder: Path, clock: Clock):
    """A function from texts to the ids of each, without BOS and EOS, that counts its time on `clock`."""
    if engine == "ours":
        ours = document_encoder.EncoderFactory(tokenizer, 10**9).make()

        def encode_ours(texts: pa.Array) -> Iterator[np.ndarray]:
            with clock:
                found = ours.encode(texts)
            starts = found.offsets.tolist()
            return (found.tokens[a + 1 : b - 1] for a, b in pairwise(starts))

        return encode_ours
    if engine == "tokenizers":
        from tokenizers import Tokenizer as HuggingFace

        theirs = HuggingFace.from_file(str(folder / "tokenizer.json"))
        theirs.encode_special_tokens = True  # "<|im_start|>" in a document is text

        def encode_theirs(texts: pa.Array) -> Iterator[list[int]]:
            strings = texts.to_pylist()
            with clock:
                found = theirs.encode_batch(strings, add_special_tokens=False)
            return (encoding.ids for encoding in found)

        return encode_theirs

    def encode_sentencepiece(texts: pa.Array) -> Iterator[list[int]]:
        strings = texts.to_pylist()
        with clock:
            found = tokenizer.encode_batch(strings)
        return iter(found)

    return encode_sentencepiece


def to_shards(documents: Path, tokenizer: Tokenizer, clock: Clock) -> float:
    """The stage's own way from Parquet to shards, by the kernels."""
    document_encoder.KERNELS_FROM_BYTES = 0
    warm = document_encoder.EncoderFactory(tokenizer, 1).make()
    warm.encode(pa.array(["warm up"], pa.large_string()))
    before = peak_megabytes()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "tokens").mkdir()
        log = EventLog(root / "events.jsonl", as_json=False, stream=io.StringIO())
        session = StageSession("tokenizer", root / "work", log)
        with clock:
            write_shards(documents, tokenizer, root / "tokens", session, ShardSettings(num_threads=1))
    return before


def result(clock: Clock, digest: str, before: float) -> dict[str, float | str]:
    return {
        "seconds": clock.seconds,
        "digest": digest,
        "before": before,
        "peak": peak_megabytes(),
    }


def peak_megabytes() -> float:
    """Largest resident set of this program. Not `ru_maxrss`, which begins with that of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def run_engine(engine: str, documents: Path, folder: Path) -> dict[str, float | str]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", engine, str(documents), str(folder)]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def learn(texts: dict[str, list[str]], vocab_size: int, folder: Path) -> None:
    """A vocabulary from every fourth document of both languages."""
    sample = [text[:8000] for language in texts.values() for text in language[::4]]
    folder.mkdir()
    tokenizer = Tokenizer(train_sentencepiece(sample, vocab_size, 0.9995))
    (folder / "tokenizer.model").write_bytes(tokenizer.model_proto)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)), encoding="utf-8")


def compare(
    language: str, vocab_size: int, num_bytes: int, documents: Path, folder: Path, rounds: int
) -> None:
    """Print a row per engine."""
    found: dict[str, list[dict]] = {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        for engine in ENGINES:
            found[engine].append(run_engine(engine, documents, folder))
    speeds = {engine: num_bytes / 1e6 / min(one["seconds"] for one in runs) for engine, runs in found.items()}
    truth = found["sentencepiece"][0]["digest"]
    for engine, runs in found.items():
        same = "" if not runs[0]["digest"] else "yes" if runs[0]["digest"] == truth else "NO"
        print(
            f"| {language} | {vocab_size:,} | {engine} | {speeds[engine]:.1f} | "
            f"{speeds[engine] / speeds['tokenizers']:.1f} | {same} | "
            f"{max(one['peak'] for one in runs):.0f} | {max(one['peak'] - one['before'] for one in runs):.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[4096, 32_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = {name: list(read_texts(options.folder, name == "zh")) for name in ("en", "zh")}
    print("| text | pieces | engine | MB per CPU second | ratio | ids equal | peak MB | of it for encoding |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for vocab_size in options.vocab_sizes:
            learn(texts, vocab_size, root / str(vocab_size))
        for language, some in texts.items():
            write_documents(root / language, some, language)
            num_bytes = sum(len(text.encode()) for text in some)
            for vocab_size in options.vocab_sizes:
                compare(
                    f"{language}, {len(some):,} documents, {num_bytes / 1e6:.1f} MB",
                    vocab_size,
                    num_bytes,
                    root / language,
                    root / str(vocab_size),
                    options.rounds,
                )


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "--measure":
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()
