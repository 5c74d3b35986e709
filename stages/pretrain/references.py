"""Lines to judge a loss by: what simple models and ordinary compressors reach on the same text."""

from __future__ import annotations

import gzip
import lzma
import math
from dataclasses import dataclass

from stages.whitebox.batches import TokenShards, unigram_entropy
from stages.whitebox.evaluation import choose_documents
from stages.whitebox.tokenizer import Tokenizer


@dataclass(frozen=True)
class References:
    """Two in nats per token, two in bits per byte."""

    uniform_loss: float
    """Every token equally likely: where an untrained model starts."""
    unigram_loss: float
    """Each token as likely as it is frequent: what a model knows that has learned frequencies only."""
    gzip_bits_per_byte: float
    """gzip -9 of the held-out text as one file."""
    xz_bits_per_byte: float
    """xz -9 of it."""

    def rows(self) -> list[list[str]]:
        """A table for people."""
        return [
            ["uniform over the vocabulary", f"{self.uniform_loss:.3f} nats per token", "an untrained model"],
            ["token frequencies only", f"{self.unigram_loss:.3f} nats per token", "reached within minutes"],
            ["gzip -9", f"{self.gzip_bits_per_byte:.3f} bits per byte", "a model that works is below"],
            ["xz -9", f"{self.xz_bits_per_byte:.3f} bits per byte", "a good one is below this too"],
        ]


def measure_references(
    train: TokenShards, validation: TokenShards, tokenizer: Tokenizer, max_tokens: int
) -> References:
    """Measures all four; the compressors read the same documents that `evaluate_bits_per_byte` scores."""
    chosen = choose_documents(validation.num_documents, documents_within(validation, max_tokens))
    texts = [tokenizer.decode(int(token) for token in validation.document(index)) for index in chosen]
    raw = "\n".join(texts).encode()
    bits_per_byte = 8 / max(1, len(raw))
    return References(
        uniform_loss=math.log(train.vocab_size),
        unigram_loss=unigram_entropy(train),
        gzip_bits_per_byte=len(gzip.compress(raw, compresslevel=9)) * bits_per_byte,
        xz_bits_per_byte=len(lzma.compress(raw, preset=9)) * bits_per_byte,
    )


def documents_within(shards: TokenShards, max_tokens: int) -> int:
    """How many evenly spread documents have about `max_tokens` tokens together; at least one."""
    return max(1, shards.num_documents * max_tokens // max(max_tokens, shards.num_tokens))
