"""Token shards from disk, and training batches cut out of them.

The tokens stay memory-mapped: a corpus may be larger than memory.

Shapes: B batch, T tokens, D documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.whitebox.best_fit import pack_documents
from stages.whitebox.losses import IGNORED

NAMED_DOCUMENTS = 8
COUNTED_AT_ONCE = 2**22  # tokens; as 64-bit integers 32 MiB
CHECKED_DOCUMENTS = 2**16  # of each file, evenly spread: each one is a page to read from the disk
_DTYPES = {"U16": np.uint16, "U32": np.uint32, "I64": np.int64}


class TokenShards:
    """One split of a tokenized corpus: `{split}-*.safetensors` in a folder, read as one long array.

    Every document is BOS, its ids, EOS. `doc_offsets` (D + 1) says where documents begin in that array,
    `num_bytes` (D) how long their texts are in UTF-8.

    Raises:
        ValueError: there is no such split, a file is not whole, or documents do not begin with one same id.
    """

    def __init__(self, folder: Path, split: str) -> None:
        paths = sorted(Path(folder).glob(f"{split}-*.safetensors"))
        if not paths:
            raise ValueError(
                f"{folder} has no {split}-*.safetensors; expected the `tokens` part of the tokenizer stage"
            )
        self.split = split
        shards = [_map_tensors(path) for path in paths]
        self._parts = [shard["tokens"] for shard in shards]
        self._part_starts = np.cumsum([0, *(len(part) for part in self._parts)])
        offsets = [
            shard["doc_offsets"][:-1] + start for shard, start in zip(shards, self._part_starts, strict=False)
        ]
        self.doc_offsets: NDArray[np.int64] = np.concatenate([*offsets, self._part_starts[-1:]])
        self.num_bytes: NDArray[np.int64] = np.concatenate([shard["doc_num_bytes"] for shard in shards])
        self.vocab_size = int(_read_header(paths[0])[0]["__metadata__"]["vocab_size"])
        self._check_documents(folder)

    @property
    def tokens(self) -> NDArray[Any]:
        """All ids as one array: memory-mapped when the split is one file, a copy in memory otherwise."""
        return self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)

    @property
    def num_tokens(self) -> int:
        """Ids of all documents, BOS and EOS included."""
        return int(self._part_starts[-1])

    @property
    def num_documents(self) -> int:
        """Documents of this split."""
        return len(self.num_bytes)

    @property
    def bos_id(self) -> int:
        """The id that every document begins with."""
        return int(next(part[0] for part in self._parts if len(part)))

    def document(self, index: int) -> NDArray[np.int64]:
        """All ids of one document, BOS and EOS included."""
        return self.read(int(self.doc_offsets[index]), int(self.doc_offsets[index + 1]))

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """The ids from `start` up to `stop` of the whole array, across files, as a copy.

        Raises:
            ValueError: one is beyond the vocabulary; on a GPU it would end the process without a word.
        """
        first = int(np.searchsorted(self._part_starts, start, side="right")) - 1
        pieces = [np.zeros(0, dtype=np.int64)]
        for part, part_start in zip(self._parts[first:], self._part_starts[first:], strict=False):
            if part_start >= stop:
                break
            pieces.append(part[max(start - part_start, 0) : stop - part_start].astype(np.int64))
        ids = np.concatenate(pieces)
        if ids.size and int(ids.max()) >= self.vocab_size:
            self._refuse(start, ids)
        return ids

    def _refuse(self, start: int, ids: NDArray[np.int64]) -> NoReturn:
        place = int((ids >= self.vocab_size).argmax())
        document = int(np.searchsorted(self.doc_offsets, start + place, side="right")) - 1
        raise ValueError(
            f"{self.split} document {document} has the id {ids[place]}, the vocabulary ends at "
            f"{self.vocab_size - 1}: the shards are damaged or of another tokenizer; build them again: "
            "glassworks rerun tokenizer"
        )

    def _check_documents(self, folder: Path) -> None:
        if self.num_tokens == 0 or self.num_documents == 0:
            raise ValueError(f"{folder} has no {self.split} documents; give the corpus more text")
        firsts = []
        for part, low in zip(self._parts, self._part_starts, strict=False):
            begin, end = np.searchsorted(self.doc_offsets[:-1], [low, low + len(part)])
            step = max(1, (end - begin) // CHECKED_DOCUMENTS)
            firsts.append(part[self.doc_offsets[begin:end:step] - low])
        if (np.concatenate(firsts) != self.bos_id).any():
            raise ValueError(
                f"{folder}: {self.split} documents begin with different ids, expected BOS everywhere"
            )


class PackedBatches:
    """Rows of exactly `context_tokens`, cut from a stream of shuffled documents; endless.

    Each epoch puts the documents in a new order, cuts that stream into rows and shuffles the rows. A row's
    inputs are BOS and the stream without its last token, its targets the stream: so a row that starts
    within a document looks like the windows of `evaluate_bits_per_byte`, and every token is a target once
    per epoch. BOS itself is no target; nothing is to be learned about where the next document begins. The
    last tokens of an epoch that fill no row fall out, others each epoch.

    With `best_fit` documents are not cut where the row ends: each epoch packs them anew (`best_fit`), only
    those longer than a row are cut, a continuation begins with BOS again, and a row ends in BOS, which are
    no targets.

    Args:
        separate_documents: also give "document_ids" and "positions", so that attention stays within
            documents.

    Raises:
        ValueError: the split is shorter than one row.
    """

    def __init__(
        self,
        shards: TokenShards,
        batch_size: int,
        context_tokens: int,
        seed: int,
        separate_documents: bool = False,
        best_fit: bool = False,
    ) -> None:
        if shards.num_tokens < context_tokens:
            raise ValueError(
                f"the {shards.split} split has {shards.num_tokens} tokens, fewer than one row of "
                f"{context_tokens}; give the corpus more text or set a smaller context_tokens"
            )
        self.shards, self.batch_size, self.context_tokens = shards, batch_size, context_tokens
        self.seed, self.separate_documents = seed, separate_documents
        self.best_fit = best_fit
        self._epoch, self._row = 0, 0
        self.last_place: tuple[dict[str, int], dict[str, int]] | None = None
        """The states before and after the last batch, for who has to name its rows."""
        self._shuffle()

    def next_batch(self) -> dict[str, Tensor]:
        """ "ids" and "targets", both BxT int64, and "document_ids" and "positions" if asked for."""
        return self.next_rows(self.batch_size)

    def next_rows(self, num_rows: int) -> dict[str, Tensor]:
        """A batch of so many rows."""
        start = self.state_dict()
        targets_BxT = torch.from_numpy(np.stack([self._read_row(self._next_row()) for _ in range(num_rows)]))
        ids_BxT = torch.cat([torch.full((num_rows, 1), self.shards.bos_id), targets_BxT[:, :-1]], dim=1)
        batch = {
            "ids": ids_BxT,
            "targets": targets_BxT.masked_fill(targets_BxT == self.shards.bos_id, IGNORED),
        }
        if self.separate_documents:
            batch["document_ids"] = (ids_BxT == self.shards.bos_id).cumsum(dim=1)
            batch["positions"] = positions_within(batch["document_ids"])
        self.last_place = (start, self.state_dict())
        return batch

    def skip_rows(self, num_rows: int) -> None:
        """Pass over rows that another process reads."""
        for _ in range(num_rows):
            self._next_row()

    def describe(self, start: dict[str, int], end: dict[str, int]) -> str:
        """What lies between two states, as long as it is in the present epoch: rows, and their documents."""
        if start["epoch"] != self._epoch:
            return f"rows from {start['row']} of epoch {start['epoch']} on"
        rows = range(start["row"], end["row"])
        documents = sorted(
            {int(d) for number in rows for d in self._documents_of(int(self._row_order[number]))}
        )
        named = ", ".join(str(document) for document in documents[:NAMED_DOCUMENTS])
        more = ", ..." if len(documents) > NAMED_DOCUMENTS else ""
        where = f"rows {rows.start} to {rows.stop - 1} of epoch {self._epoch}"
        return f"{where}, {self.shards.split} documents {named}{more}"

    def state_dict(self) -> dict[str, int]:
        """Where the next batch begins; the orders follow from seed and epoch."""
        return {
            "seed": self.seed,
            "epoch": self._epoch,
            "row": self._row,
            "rows_per_epoch": self.rows_per_epoch,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: the state is of another seed, or of shards or a context with another number of rows.
        """
        mine = self.state_dict()
        for name in ("seed", "rows_per_epoch"):
            if state[name] != mine[name]:
                raise ValueError(f"the saved batches have {name} {state[name]}, these have {mine[name]}")
        self._epoch, self._row = state["epoch"], state["row"]
        self._shuffle()

    def _shuffle(self) -> None:
        generator = np.random.default_rng([self.seed, self._epoch])
        self._documents = generator.permutation(self.shards.num_documents)
        lengths = np.diff(self.shards.doc_offsets)[self._documents]
        if self.best_fit:
            self._packed = pack_documents(lengths, self.context_tokens)
            self.rows_per_epoch = self._packed.num_rows  # the lengths decide, so the same each epoch
        else:
            self._stream_starts = np.concatenate([[0], np.cumsum(lengths)])
            self.rows_per_epoch = self.shards.num_tokens // self.context_tokens
        self._row_order = generator.permutation(self.rows_per_epoch)

    def _next_row(self) -> int:
        if self._row == self.rows_per_epoch:
            self._epoch, self._row = self._epoch + 1, 0
            self._shuffle()
        self._row += 1
        return int(self._row_order[self._row - 1])

    def _read_row(self, row: int) -> NDArray[np.int64]:
        if self.best_fit:
            return self._read_packed(row)
        return self._read_stream(row * self.context_tokens, (row + 1) * self.context_tokens)

    def _documents_of(self, row: int) -> NDArray[np.int64]:
        """Numbers of the documents that a row is made of."""
        if self.best_fit:
            pieces = slice(*self._packed.row_starts_R1[row : row + 2])
            return self._documents[self._packed.document_P[pieces]]
        first, last = row * self.context_tokens, (row + 1) * self.context_tokens - 1
        places = np.searchsorted(self._stream_starts, [first, last], side="right") - 1
        return self._documents[places[0] : places[1] + 1]

    def _read_packed(self, row: int) -> NDArray[np.int64]:
        packed, end = self._packed, 0
        tokens_T = np.full(self.context_tokens, self.shards.bos_id)
        for piece in range(packed.row_starts_R1[row], packed.row_starts_R1[row + 1]):
            start, length = int(packed.start_P[piece]), int(packed.length_P[piece])
            first = int(self.shards.doc_offsets[self._documents[packed.document_P[piece]]]) + start
            begin = end + (start > 0)  # a BOS stays before a continuation
            end = begin + length
            tokens_T[begin:end] = self.shards.read(first, first + length)
        return tokens_T

    def _read_stream(self, start: int, stop: int) -> NDArray[np.int64]:
        first = int(np.searchsorted(self._stream_starts, start, side="right")) - 1
        pieces = []
        for place in range(first, len(self._documents)):
            place_start, place_end = self._stream_starts[place], self._stream_starts[place + 1]
            if place_start >= stop:
                break
            in_shards = self.shards.doc_offsets[self._documents[place]] - place_start
            pieces.append(
                self.shards.read(
                    int(max(start, place_start) + in_shards), int(min(stop, place_end) + in_shards)
                )
            )
        return np.concatenate(pieces)


def positions_within(document_ids_BxT: Tensor) -> Tensor:
    """Position of each token in its own document, from 0; a document's tokens stand side by side."""
    index_T = torch.arange(document_ids_BxT.shape[1], device=document_ids_BxT.device)
    is_first_BxT = torch.ones_like(document_ids_BxT, dtype=torch.bool)
    is_first_BxT[:, 1:] = document_ids_BxT[:, 1:] != document_ids_BxT[:, :-1]
    starts_BxT = torch.where(is_first_BxT, index_T, 0).cummax(dim=1).values
    return index_T - starts_BxT


def unigram_entropy(shards: TokenShards) -> float:
    """Nats per token of a model that knows only how often each token occurs."""
    counts = np.zeros(shards.vocab_size)
    for start in range(0, shards.num_tokens, COUNTED_AT_ONCE):
        piece = shards.read(start, min(start + COUNTED_AT_ONCE, shards.num_tokens))
        counts += np.bincount(piece, minlength=shards.vocab_size)
    counts[shards.bos_id] = 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def windows_of(document: NDArray[np.int64], context_tokens: int) -> Iterator[NDArray[np.int64]]:
    """A document's ids without BOS and EOS, cut into windows of at most `context_tokens`."""
    body = document[1:-1]
    for start in range(0, len(body), context_tokens):
        yield body[start : start + context_tokens]


def _map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    header, data_start = _read_header(path)
    return {
        name: np.memmap(
            path,
            dtype=_DTYPES[entry["dtype"]],
            mode="r",
            offset=data_start + entry["data_offsets"][0],
            shape=tuple(entry["shape"]),
        )
        if entry["shape"][0]
        else np.zeros(0, dtype=_DTYPES[entry["dtype"]])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file is the header's length (8 bytes), the header (JSON), and the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is no safetensors file: its header is not JSON") from error
    data_end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    if path.stat().st_size < 8 + length + data_end:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, expected {8 + length + data_end}: it is cut short"
        )
    return header, 8 + length
