"""Documents to token shards in one pass: memory is one batch of documents, however long the corpus.

Tokens go to a plain file first, because the header of a safetensors file needs the total; it is then copied
behind the header. Readers map the result into memory.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_contracts import TOKEN_SHARDS
from data_contracts.documents import SPLITS
from data_contracts.tables import read_rows
from stages.runtime.session import StageSession
from stages.whitebox.tokenizer import Tokenizer

BATCH_DOCUMENTS = 128


@dataclass
class LanguageCount:
    """What the validation documents of one language cost in tokens."""

    num_documents: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_byte_tokens: int = 0


@dataclass
class ShardWriter:
    """Collects the documents of one split and writes them as one safetensors file."""

    split: str
    scratch: Path
    dtype: type[np.unsignedinteger[Any]]
    offsets: list[int] = field(default_factory=lambda: [0])
    num_bytes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file: IO[bytes] = self.scratch.open("wb")

    def add(self, ids: Sequence[int], num_bytes: int) -> None:
        """Append one document: its ids with BOS and EOS, and the size of its text."""
        self._file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.offsets.append(self.offsets[-1] + len(ids))
        self.num_bytes.append(num_bytes)

    def finish(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the shard and remove the scratch file."""
        self._file.close()
        small = {
            "doc_num_bytes": np.asarray(self.num_bytes, dtype="<i8"),
            "doc_offsets": np.asarray(self.offsets, dtype="<i8"),
        }
        kind = {np.uint16: "U16", np.uint32: "U32"}[self.dtype]
        sizes = {name: ("I64", array.shape[0], array.nbytes) for name, array in small.items()}
        sizes["tokens"] = (kind, self.offsets[-1], self.scratch.stat().st_size)
        with path.open("wb") as shard:
            shard.write(safetensors_header(sizes, metadata))
            for array in small.values():
                shard.write(array.tobytes())
            with self.scratch.open("rb") as tokens:
                shutil.copyfileobj(tokens, shard, 1 << 20)
        path.chmod(0o644)
        self.scratch.unlink()


def safetensors_header(tensors: Mapping[str, tuple[str, int, int]], metadata: Mapping[str, str]) -> bytes:
    """Header of a safetensors file of flat tensors: name -> (dtype, elements, bytes), in file order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, (dtype, elements, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [elements], "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin on a multiple of 8
    return struct.pack("<Q", len(text)) + text


def write_shards(
    documents: Path, num_documents: int, tokenizer: Tokenizer, folder: Path, session: StageSession
) -> tuple[dict[str, ShardWriter], dict[str, LanguageCount], np.ndarray]:
    """Encode every document into the shard of its split, in the order of the table.

    Returns the writers (their offsets tell the totals), token counts of the validation documents per
    language, and how often each id was used.
    """
    dtype: type[np.unsignedinteger[Any]] = np.uint16 if tokenizer.vocab_size <= 65_536 else np.uint32
    writers = {split: ShardWriter(split, session.work_dir / f"{split}.tokens", dtype) for split in SPLITS}
    languages: dict[str, LanguageCount] = defaultdict(LanguageCount)
    usage = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    is_byte = np.array([tokenizer.is_byte(i) for i in range(tokenizer.vocab_size)])
    done = 0
    for batch in _batches(documents):
        for row, ids in zip(batch, tokenizer.encode_batch([row["text"] for row in batch]), strict=True):
            num_bytes = len(row["text"].encode())
            writers[row["split"]].add([tokenizer.bos_id, *ids, tokenizer.eos_id], num_bytes)
            counts = np.bincount(ids, minlength=tokenizer.vocab_size)
            usage += counts
            if row["split"] == "validation":
                _count(languages[row["language"]], num_bytes, len(ids), int(counts[is_byte].sum()))
        done += len(batch)
        session.progress(done, num_documents, unit="documents")
    metadata = {
        "contract": TOKEN_SHARDS.identity,
        "vocab_size": str(tokenizer.vocab_size),
        "tokenizer_sha256": tokenizer.sha256,
    }
    for split, writer in writers.items():
        writer.finish(folder / f"{split}-00000.safetensors", metadata | {"split": split})
    return writers, dict(languages), usage


def _batches(documents: Path) -> Iterator[list[dict[str, Any]]]:
    rows = read_rows(documents, ["language", "split", "text"])
    while batch := list(islice(rows, BATCH_DOCUMENTS)):
        yield batch


def _count(language: LanguageCount, num_bytes: int, num_tokens: int, num_byte_tokens: int) -> None:
    language.num_documents += 1
    language.num_bytes += num_bytes
    language.num_tokens += num_tokens
    language.num_byte_tokens += num_byte_tokens
