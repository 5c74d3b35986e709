"""Arrow strings to token ids, each document as BOS, its ids, EOS: by our kernels, or by the library.

Both give the same ids; a test holds them together. The kernels know SentencePiece's BPE as this stage trains
it. A unigram model, an imported tokenizer, or a model that rewrites text is encoded by its own library.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.runtime.errors import UserError
from stages.tokenizer.encoder_tables import EncoderTables, make_tables, why_not_supported

CACHE_LOG2_SLOTS = 18
"""19 MB. English with 32,000 pieces is no faster with four times as many, a quarter slower with a fourth."""
KERNELS_FROM_BYTES = 20_000_000
"""Below this the library is done before numba has compiled the kernels: 8 s, for the first time."""
LIBRARY_BATCH_BYTES = 1 << 20  # lists of Python's integers take some 20 bytes per byte of text


class DocumentTokenizer(Protocol):
    """What encoding needs to know of a tokenizer: `whitebox.Tokenizer`, or one like it."""

    vocab_size: int
    bos_id: int
    eos_id: int

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        ...


class Encoded(NamedTuple):
    """Documents as ids. `tokens` [N] has the shards' dtype, `offsets` int64 [D + 1] begins with 0."""

    tokens: np.ndarray
    offsets: np.ndarray


class DocumentEncoder(Protocol):
    """Encodes many documents at once. Not for two threads at a time: make one for each."""

    def encode(self, texts: pa.Array) -> Encoded:
        """Ids of the texts, a string array; null counts as empty."""
        ...


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest of the two types of a shard that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


class KernelEncoder:
    """Our kernels. Memory: the cache, and for a call 2 or 4 times the bytes of its texts."""

    def __init__(self, tables: EncoderTables, bos_id: int, eos_id: int) -> None:
        from stages.tokenizer.encoder_kernels import encode_documents, new_cache  # numba, only if needed

        self._encode, self._cache = encode_documents, new_cache(CACHE_LOG2_SLOTS)
        self._tables, self._ends = tables, (bos_id, eos_id)
        self._room = np.empty(0, dtype=token_dtype(tables.vocab_size))

    def encode(self, texts: pa.Array) -> Encoded:
        """See `DocumentEncoder`. Raises UserError when the texts are no UTF-8."""
        text, starts = text_buffers(texts)
        most = int(starts[-1] - starts[0]) + 2 * len(texts)  # a byte is one token at most
        if most > len(self._room):
            self._room = np.empty(most, dtype=self._room.dtype)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        count = self._encode(text, starts, self._tables, self._cache, *self._ends, self._room, offsets[1:])
        return Encoded(self._room[:count].copy(), offsets)


class LibraryEncoder:
    """The tokenizer's own `encode_batch`, some documents at a time."""

    def __init__(self, tokenizer: DocumentTokenizer) -> None:
        self._tokenizer, self._dtype = tokenizer, token_dtype(tokenizer.vocab_size)

    def encode(self, texts: pa.Array) -> Encoded:
        """See `DocumentEncoder`. Raises UserError when the texts are no UTF-8."""
        _, starts = text_buffers(texts)
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        batches, lengths = [np.zeros(0, dtype=self._dtype)], []
        first = 0
        while first < len(texts):
            limit = starts[first] + LIBRARY_BATCH_BYTES
            stop = max(first + 1, int(np.searchsorted(starts, limit, side="right")) - 1)
            strings = pc.fill_null(texts.slice(first, stop - first), "").to_pylist()
            for ids in self._tokenizer.encode_batch(strings):
                batches.append(np.array([bos, *ids, eos], dtype=self._dtype))
                lengths.append(len(ids) + 2)
            first = stop
        return Encoded(np.concatenate(batches), np.cumsum([0, *lengths], dtype=np.int64))


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 of a string array and where each text begins in it, uint8 [B] and int64 [D + 1]; no copy.

    Raises UserError when the array holds what is no UTF-8: the kernels would read beyond its end.
    """
    if texts.null_count:
        texts = pc.fill_null(texts, "")
    texts = texts.cast(pa.large_string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"a document's text is no UTF-8: {error}", hint="build corpus_prep again; its files are damaged"
        ) from error
    if len(texts) == 0:
        return np.zeros(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    _, starts, content = texts.buffers()
    text = np.frombuffer(content, dtype=np.uint8) if content else np.zeros(0, dtype=np.uint8)
    return text, np.frombuffer(starts, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]


class EncoderFactory:
    """Makes an encoder for each thread; what they share is made once.

    Args:
        num_bytes: of text to come. Kernels are compiled only where that pays.
    """

    def __init__(self, tokenizer: DocumentTokenizer, num_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._tables: EncoderTables | None = None
        model = getattr(tokenizer, "model_proto", b"")
        self.reason = "it is no SentencePiece model" if not model else why_not_supported(model)
        if not self.reason and num_bytes >= KERNELS_FROM_BYTES:
            self._tables = make_tables(model)

    @property
    def uses_kernels(self) -> bool:
        """Whether `make` gives our kernels."""
        return self._tables is not None

    def make(self) -> DocumentEncoder:
        """An encoder for one thread."""
        if self._tables is None:
            return LibraryEncoder(self._tokenizer)
        return KernelEncoder(self._tables, self._tokenizer.bos_id, self._tokenizer.eos_id)
