"""What the vector_store stage reads, writes and can be told."""

from __future__ import annotations

from pydantic import Field, model_validator

from data_contracts import CHROMA_PROJECTION, DOCUMENTS, TOKENIZER_BUNDLE, VECTOR_STORE
from stages.runtime.spec import Read, StageConfig, StageSpec


class VectorStoreConfig(StageConfig):
    """Settings of the vector_store stage."""

    chunk_tokens: int = Field(default=256, ge=16, le=8192)
    """Longest chunk, in tokens of our tokenizer."""
    overlap_tokens: int = Field(default=32, ge=0)
    """A chunk repeats whole sentences of the one before it, up to so many tokens; at most half of a chunk."""
    dimensions: int = Field(default=256, ge=8, le=4096)
    """Width of the vectors."""
    training_steps: int = Field(default=400, ge=1)
    """Steps of the embedder's training; 400 take 15 seconds of one core."""
    batch_size: int = Field(default=512, ge=2)
    """Pairs per step: each must be told from all others. Never more than there are chunks to train on."""
    learning_rate: float = Field(default=0.02, gt=0)
    """First learning rate of the embedder, falling to 0."""
    temperature: float = Field(default=0.1, gt=0)
    """Of InfoNCE: lower looks harder at the nearest wrong answers."""
    bm25_k1: float = Field(default=1.2, ge=0)
    """How slowly repetitions of a term stop to count."""
    bm25_b: float = Field(default=0.75, ge=0, le=1)
    """How much long chunks are held back: 0 not at all, 1 in full proportion."""
    num_questions: int = Field(default=600, ge=0)
    """Held-out questions, half to choose the fusion weight and half to report."""
    hnsw_ef_construction: int = Field(default=200, ge=10)
    """Chroma: candidates looked at for each vector that is inserted."""
    hnsw_ef_search: int = Field(default=200, ge=10)
    """Chroma: candidates looked at for each query."""
    hnsw_max_neighbors: int = Field(default=16, ge=2)
    """Chroma: links per vector."""
    min_recall_at_10: float = Field(default=0.98, ge=0, le=1)
    """Share of the 10 exact nearest that Chroma must find; its settings are doubled twice before the stage
    fails."""
    num_threads: int = Field(default=1, ge=0)
    """Threads of the embedder; 0 takes all cores. Its steps are small: a second thread saves a third of 15
    seconds on idle cores, costs a minute on busy ones, and may change the last bits."""
    seed: int = Field(default=0, ge=0)
    """Seed of the embedder's first vectors and of the order of its pairs."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> VectorStoreConfig:
        if self.overlap_tokens * 2 > self.chunk_tokens:
            raise ValueError(
                f"overlap_tokens {self.overlap_tokens} is more than half of chunk_tokens {self.chunk_tokens}"
            )
        return self


SPEC = StageSpec(
    name="vector_store",
    version=1,
    config=VectorStoreConfig,
    image="vector",
    reads={
        "documents": Read("corpus_prep", "documents", DOCUMENTS),
        "tokenizer": Read("tokenizer", "tokenizer", TOKENIZER_BUNDLE),
    },
    writes={"store": VECTOR_STORE, "chroma": CHROMA_PROJECTION},
    summary="chunks with exact offsets, own vectors and BM25, fused on held-out questions; Chroma beside it",
)
