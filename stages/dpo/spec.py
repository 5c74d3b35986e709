"""What the DPO stage reads, writes and can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_contracts import CHECKPOINT, PREFERENCES, TOKEN_SHARDS, TOKENIZER_BUNDLE
from stages.runtime.spec import Read, StageConfig, StageSpec

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class DpoConfig(StageConfig):
    """Settings of direct preference optimisation."""

    beta: PositiveFloat = 0.1
    """How closely the policy is held to the reference: a larger one allows less change for the same loss."""
    epochs: PositiveFloat = 1.0
    """How often each pair is seen."""
    max_pairs: PositiveInt = 4000
    """Train on at most so many pairs, drawn by hash."""
    context_tokens: PositiveInt | Literal["auto"] = "auto"
    """Longest prompt with its answer; "auto" is the longest text that the model can read."""
    batch_pairs: PositiveInt = 32
    """Pairs of one update."""
    micro_batch_pairs: PositiveInt = 16
    """Most pairs in memory at once; lower it when memory runs out, the result stays the same to rounding."""
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Peak learning rate; "auto" is 2.5e-5 at width 256 and falls with the width. 3e-4 has ruined models."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises to its peak; then it falls linearly."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decay of the matrices; the reference already holds the weights in place."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient that is taken as it is, by norm; 0 switches clipping off."""
    max_bits_per_byte_increase: Annotated[float, Field(ge=0)] = 0.05
    """How many bits per byte held-out documents may cost more after the stage."""
    on_degradation: Literal["fail", "warn"] = "fail"
    """What happens when they cost more than that."""
    seed: int = 0
    """Of the order of the pairs."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores. Another number changes the last bits of the weights."""
    evaluations: PositiveInt = 4
    """How often, evenly spread, held-out pairs and documents are scored."""
    validation_pairs: PositiveInt = 400
    """Held-out pairs that are scored."""
    validation_documents: PositiveInt = 200
    """Held-out documents that are scored, before and after."""
    sample_prompts: tuple[str, ...] = ("Return a new", "The module", "class Counter", "In the year")
    """Beginnings of documents to continue; the same as in pretrain."""
    chat_prompts: tuple[str, ...] = (
        "What does textwrap.dedent do?",
        "Calculate 12*(3+4).",
        "Look up textwrap.dedent.",
        "Search for joining two paths.",
        "Hello!",
    )
    """Questions to answer at each evaluation; the same as in sft."""
    sample_tokens: PositiveInt = 48
    """Tokens of one sample."""
    checkpoint_every_seconds: PositiveFloat = 30.0
    """At most so much training is lost by a kill."""


SPEC = StageSpec(
    name="dpo",
    version=1,
    config=DpoConfig,
    image="torch",
    gpu="preferred",
    reads={
        "preferences": Read("corpus_prep", "preferences", PREFERENCES),
        "tokenizer": Read("tokenizer", "tokenizer", TOKENIZER_BUNDLE),
        "tokens": Read("tokenizer", "tokens", TOKEN_SHARDS),
        "model": Read("sft", "model", CHECKPOINT),
    },
    writes={"model": CHECKPOINT},
    summary="prefer the better of two answers: DPO against the SFT model, with a check on what it costs",
)
