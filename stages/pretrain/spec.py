"""What pretrain reads, writes and can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_contracts.checkpoint import CHECKPOINT
from data_contracts.token_shards import TOKEN_SHARDS
from data_contracts.tokenizer_bundle import TOKENIZER_BUNDLE
from stages.pretrain.checkpoint_files import external_digests, outside
from stages.runtime.spec import Read, StageConfig, StageSpec

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class PretrainConfig(StageConfig):
    """One dial, and everything that follows from it can still be set by hand."""

    depth: Annotated[int, Field(ge=1, le=64)] = 4
    """Layers. Width (64 per layer), heads, learning rate, batch and token budget follow from it."""
    context_tokens: Annotated[int, Field(ge=8)] = 512
    """Tokens of one training row, and the longest text that the model can read."""
    train_tokens: PositiveInt | Literal["chinchilla"] = "chinchilla"
    """Tokens to train on; "chinchilla" is 20 per parameter (Hoffmann et al. 2022, arXiv:2203.15556)."""
    global_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens of one update; "auto" follows from the token budget (Step Law, arXiv:2503.04715)."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Rows in memory at once; lower it when memory runs out, the result stays the same to rounding."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Of the layers' matrices; embeddings and norms always have AdamW."""
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """AdamW's peak; "auto" follows from the width, or without Muon from the Step Law (arXiv:2503.04715)."""
    matrix_learning_rate: PositiveFloat = 0.02
    """Muon's peak. It is the length of an update whatever the width, so it follows from nothing."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    decay_fraction: Fraction = 0.95
    """Share of the steps in which it falls linearly; what is between the two is the stable part."""
    min_learning_rate_fraction: Fraction = 0.0
    """Where the learning rate ends, as a share of its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of the matrices; norms and embeddings have none."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient that is taken as it is, by norm; 0 switches clipping off."""
    qk_norm: bool = True
    """Normalise queries and keys per head (the model is then a Qwen3, otherwise a Llama)."""
    tie_word_embeddings: bool = True
    """Use the embedding as the output matrix too."""
    induction_init: bool = True
    """Start with heads that can copy (stages/whitebox/induction.py): small models hardly learn it alone."""
    separate_documents: bool = False
    """Keep attention within a document where several share a row."""
    best_fit_packing: bool = False
    """Cut no document that fits a row; without it documents are cut wherever a row ends."""
    continue_from: str = ""
    """A model folder, ours or Hugging Face's, to go on from: its weights, in its shape."""
    continue_learning_rate_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """A model that goes on warms up again to this share of the peak that a fresh one would have."""
    seed: int = 0
    """Of the first weights and of the order of the documents."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores. Another number changes the last bits of the weights."""
    compile: Literal["auto", "off"] = "auto"
    """Fuse each layer's small operations with torch.compile; "auto" does it where the run is long enough."""
    evaluations: PositiveInt = 6
    """How often, evenly spread, the held-out loss is measured and the prompts are sampled."""
    validation_tokens: PositiveInt = 16_000
    """About so much held-out text is scored on the way: whole documents, evenly spread."""
    final_validation_tokens: PositiveInt = 200_000
    """About so much of it is scored at the end, for the figures that count."""
    sample_prompts: tuple[str, ...] = (
        "Return a new",
        "The module",
        "class Counter",
        "In the year",
    )
    """Beginnings that the model continues at each evaluation, always its most likely token."""
    sample_tokens: PositiveInt = 32
    """Tokens of one sample."""
    attention_prompt: str = "The cat saw the dog, and the dog saw the cat."
    """The text whose attention maps the report shows; words that come again show heads that copy."""
    checkpoint_every_seconds: PositiveFloat = 30.0
    """At most so much training is lost by a kill."""


SPEC = StageSpec(
    name="pretrain",
    version=1,
    config=PretrainConfig,
    image="torch",
    gpu="preferred",
    reads={
        "tokens": Read("tokenizer", "tokens", TOKEN_SHARDS),
        "tokenizer": Read("tokenizer", "tokenizer", TOKENIZER_BUNDLE),
    },
    writes={"model": CHECKPOINT},
    external_inputs=external_digests,
    outside=outside,
    not_in_key=frozenset({"continue_from"}),
    summary="train the base model: a hand-written decoder, one size dial, resumable bit for bit",
)
