"""What the tokenizer stage reads, writes and can be told."""

from __future__ import annotations

from pydantic import Field

from data_contracts import CONVERSATIONS, DOCUMENTS, TOKEN_SHARDS, TOKENIZER_BUNDLE
from stages.runtime.spec import Read, StageConfig, StageSpec

MIN_VOCAB_SIZE = 400  # 279 fixed ids, ASCII, and a few merges


class TokenizerConfig(StageConfig):
    """Settings of the tokenizer stage."""

    vocab_size: int = Field(default=4096, ge=MIN_VOCAB_SIZE, le=1_000_000)
    """Number of token ids, 279 of them fixed. More of them shorten texts and widen the model."""
    sample_megabytes: float = Field(default=20.0, gt=0)
    """Text that SentencePiece learns from. It takes about 17 MB of memory per MB of text, and some 0.3 s."""
    conversation_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the sample that is conversations, so that chats and tool calls get pieces too."""
    max_document_bytes: int = Field(default=20_000, ge=100)
    """The sample takes at most so many bytes of one document: a long book must not outweigh many pages."""
    character_coverage: float = Field(default=0.9995, gt=0.9, le=1)
    """Share of the sample's characters that get a piece of their own; the rest are spelled in byte tokens."""
    shard_tokens: int = Field(default=2**28, ge=1)
    """A file of tokens holds at most about so many; 2**28 are 512 MiB at two bytes each."""
    shuffle_seed: int = Field(default=0, ge=0)
    """Another seed writes the documents in another order."""
    num_threads: int = Field(default=0, ge=0)
    """Threads that encode documents; 0 for one per processor. The tokens do not depend on it."""


SPEC = StageSpec(
    name="tokenizer",
    version=1,
    config=TokenizerConfig,
    image="torch",
    reads={
        "documents": Read("corpus_prep", "documents", DOCUMENTS),
        "conversations": Read("corpus_prep", "conversations", CONVERSATIONS),
    },
    writes={"tokenizer": TOKENIZER_BUNDLE, "tokens": TOKEN_SHARDS},
    summary="SentencePiece BPE with byte fallback, the same ids in Hugging Face's format, token shards",
)
