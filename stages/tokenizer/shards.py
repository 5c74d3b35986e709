"""Documents to shuffled token shards in two passes, in bounded memory, by any number of threads.

1. Units of documents are encoded, each into files of its own (`shard_units`).
2. The buckets of all units become shards (`shard_files`): documents in the order of a hash, whole, BOS and
   EOS around each.

Both passes leave finished files in the work folder; a run that was killed goes on from there. The shards
depend on documents, tokenizer, seed and sizes, and on nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts import TOKEN_SHARDS
from data_contracts.documents import SPLITS
from data_contracts.tables import part_files
from stages.runtime.errors import StopRequested
from stages.runtime.session import StageSession
from stages.tokenizer.document_encoder import EncoderFactory, token_dtype
from stages.tokenizer.shard_files import Shard, plan_shards, write_shard
from stages.tokenizer.shard_units import (
    Encoding,
    LanguageCount,
    Unit,
    UnitFiles,
    encode_unit,
    list_units,
    read_summary,
)
from stages.whitebox.tokenizer import Tokenizer

BUCKET_BYTES = 64 << 20
"""Text of one bucket, about: what the second pass holds in memory at a time, as tokens."""
BUCKETS_PER_SHARD = 4  # at least, so that shards are filled well
CURSOR = "cursor.json"
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class ShardSettings:
    """What can be told about the shards."""

    shard_tokens: int = 2**28
    """A file holds at most about so many, 512 MiB at two bytes each."""
    shuffle_seed: int = 0
    num_threads: int = 1
    """0: one for each processor. The shards do not depend on it."""


@dataclass
class ShardCounts:
    """What was written."""

    num_tokens: dict[str, int] = field(default_factory=dict)
    """Split -> tokens, BOS and EOS counted."""
    languages: dict[str, LanguageCount] = field(default_factory=dict)
    """What the validation documents cost, by language."""
    usage: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 [vocabulary]: how often each id was used."""
    shards: list[Shard] = field(default_factory=list)


def write_shards(
    documents: Path, tokenizer: Tokenizer, folder: Path, session: StageSession, settings: ShardSettings
) -> ShardCounts:
    """Encode every document of the part `documents` and write the shards of both splits to `folder`.

    Raises:
        StopRequested: somebody asked to stop; what was finished stays in the work folder.
        UserError: a text is no UTF-8.
    """
    num_buckets = _num_buckets(documents, settings.shard_tokens)
    units = list_units(documents)
    scratch = _open_scratch(session.work_dir, tokenizer, settings, num_buckets, units)
    files = [UnitFiles(scratch, unit.number) for unit in units]
    _encode_units(documents, units, tokenizer, settings, num_buckets, scratch, session)
    starts, usage, languages = _add_up(files, tokenizer.vocab_size)
    bucket_tokens = sum((np.diff(start[:, 1]) for start in starts), np.int64(0))
    shards = plan_shards(bucket_tokens, num_buckets, settings.shard_tokens)
    dtype = token_dtype(tokenizer.vocab_size)
    missing = [shard for shard in shards if not (scratch / shard.name).exists()]
    work = [
        partial(write_shard, shard, files, starts, dtype, _metadata(tokenizer), scratch / shard.name)
        for shard in missing
    ]
    _run_all(work, settings.num_threads, session, lambda _: None)
    for shard in shards:
        shutil.move(scratch / shard.name, folder / shard.name)
    num_tokens = {split: sum(s.num_tokens for s in shards if s.split == split) for split in SPLITS}
    return ShardCounts(num_tokens, languages, usage, shards)


def _metadata(tokenizer: Tokenizer) -> dict[str, str]:
    return {
        "contract": TOKEN_SHARDS.identity,
        "vocab_size": str(tokenizer.vocab_size),
        "tokenizer_sha256": tokenizer.sha256,
    }


def _num_buckets(documents: Path, shard_tokens: int) -> dict[str, int]:
    """Buckets of each split. A token stands for a byte at least, so a bucket's bytes bound its tokens."""
    totals = dict.fromkeys(SPLITS, 0)
    for path in part_files(documents):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=65_536, columns=["split", "num_bytes"]):
                for split in SPLITS:
                    mine = batch.filter(pc.equal(batch.column("split"), split))
                    totals[split] += pc.sum(mine.column("num_bytes")).as_py() or 0
    size = max(1, min(BUCKET_BYTES, shard_tokens // BUCKETS_PER_SHARD))
    return {split: max(1, -(-total // size)) for split, total in totals.items()}


def _open_scratch(
    work_dir: Path,
    tokenizer: Tokenizer,
    settings: ShardSettings,
    num_buckets: dict[str, int],
    units: Sequence[Unit],
) -> Path:
    """The folder of finished units and shards; one that was made for something else is removed."""
    scratch = work_dir / "checkpoints" / "shards"
    cursor = {
        "tokenizer_sha256": tokenizer.sha256,
        "shard_tokens": settings.shard_tokens,
        "shuffle_seed": settings.shuffle_seed,
        "num_buckets": num_buckets,
        "units": [asdict(unit) for unit in units],
    }
    text = json.dumps(cursor)
    if scratch.exists() and not (
        (scratch / CURSOR).exists() and (scratch / CURSOR).read_text(encoding="utf-8") == text
    ):
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    new = scratch / f"{CURSOR}.partial"
    new.write_text(text, encoding="utf-8")
    new.replace(scratch / CURSOR)
    return scratch


def _encode_units(
    documents: Path,
    units: Sequence[Unit],
    tokenizer: Tokenizer,
    settings: ShardSettings,
    num_buckets: dict[str, int],
    scratch: Path,
    session: StageSession,
) -> None:
    missing = [unit for unit in units if not UnitFiles(scratch, unit.number).summary.exists()]
    total = sum(unit.num_documents for unit in units)
    done = total - sum(unit.num_documents for unit in missing)
    if done:
        session.log(f"going on after {done:,} of {total:,} documents that an earlier run encoded")
    factory = EncoderFactory(tokenizer, sum(unit.num_bytes for unit in missing))
    is_byte = np.array([tokenizer.is_byte(i) for i in range(tokenizer.vocab_size)])
    of_thread = threading.local()

    def encode(unit: Unit) -> int:
        if not hasattr(of_thread, "encoder"):
            of_thread.encoder = factory.make()  # its table of known parts serves all units of the thread
        encoding = Encoding(
            of_thread.encoder,
            is_byte,
            tokenizer.bos_id,
            tokenizer.eos_id,
            settings.shuffle_seed,
            num_buckets,
        )
        encode_unit(documents, unit, encoding, scratch)
        return unit.num_documents

    def report(num_documents: int) -> None:
        nonlocal done
        done += num_documents
        session.progress(done, total, unit="documents")

    _run_all([partial(encode, unit) for unit in missing], settings.num_threads, session, report)
    session.progress(total, total, unit="documents")


def _run_all(
    work: Sequence[Callable[[], Any]], num_threads: int, session: StageSession, report: Callable[[Any], None]
) -> None:
    """Do all of `work` in threads: kernels, Arrow and SentencePiece let go of Python's lock.

    Raises StopRequested between two of them.
    """
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        pending = {pool.submit(one) for one in work}
        try:
            while pending:
                if session.should_stop():
                    raise StopRequested("encoding was asked to stop", hint="build again to go on")
                finished, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for one in finished:
                    report(one.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _add_up(
    files: Sequence[UnitFiles], vocab_size: int
) -> tuple[list[np.ndarray], np.ndarray, dict[str, LanguageCount]]:
    """Where each unit's buckets begin; how often all units use each id; what the languages cost."""
    starts: list[np.ndarray] = []
    usage = np.zeros(vocab_size, dtype=np.int64)
    languages: dict[str, LanguageCount] = {}
    for unit in files:
        summary = read_summary(unit)
        starts.append(summary.bucket_starts)
        usage += summary.usage
        for name, count in summary.languages.items():
            languages.setdefault(name, LanguageCount()).add(count)
    return starts, usage, languages
