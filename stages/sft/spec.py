"""What the SFT stage reads, writes and can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_contracts import BATCH_PREVIEW, CHECKPOINT, CONVERSATIONS, TOKEN_SHARDS, TOKENIZER_BUNDLE
from stages.runtime.spec import Read, StageConfig, StageSpec

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class SftConfig(StageConfig):
    """Settings of supervised fine-tuning."""

    epochs: PositiveFloat = 3.0
    """How often each conversation is seen."""
    max_steps: PositiveInt | None = None
    """Stop after so many updates, however many epochs that is; the learning rate is planned for it."""
    max_conversations: PositiveInt = 200_000
    """Train on at most so many, drawn by hash: rendered conversations are held in memory."""
    kind_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    """How often a conversation of that kind (qa, tool, own) counts within an epoch; 1 where not named."""
    replay_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training tokens that are documents of the pretraining corpus, against forgetting."""
    context_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens of one training row; "auto" holds the longest conversation, as far as the model can read."""
    batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens of one update, padding included; "auto" follows from the length of the training."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Most rows in memory at once; lower it when memory runs out, the result stays the same to rounding."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Of the layers' matrices; Muon suits a base model that Muon trained (stages/sft/README.md)."""
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """AdamW's peak; "auto" is 2e-3 at width 256 and falls with the width, as muP would have it."""
    matrix_learning_rate: PositiveFloat = 0.015
    """Muon's peak: the length of an update, whatever the width."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps in which the learning rate rises to its peak; then it falls linearly."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's decay of the matrices."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient that is taken as it is, by norm; 0 switches clipping off."""
    seed: int = 0
    """Of the order of the rows and of the replayed documents."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores. Another number changes the last bits of the weights."""
    evaluations: PositiveInt = 4
    """How often, evenly spread, held-out conversations and documents are scored."""
    validation_conversations: PositiveInt = 400
    """Held-out conversations that are scored."""
    validation_documents: PositiveInt = 200
    """Held-out documents that are scored, before and after, to see what was forgotten."""
    sample_prompts: tuple[str, ...] = ("Return a new", "The module", "class Counter", "In the year")
    """Beginnings of documents to continue; the same as in pretrain, so that the report can show both."""
    chat_prompts: tuple[str, ...] = (
        "What does textwrap.dedent do?",
        "Calculate 12*(3+4).",
        "Look up textwrap.dedent.",
        "Search for joining two paths.",
        "Hello!",
    )
    """Questions to answer at each evaluation, always with the most likely token."""
    sample_tokens: PositiveInt = 48
    """Tokens of one sample."""
    checkpoint_every_seconds: PositiveFloat = 30.0
    """At most so much training is lost by a kill."""


SPEC = StageSpec(
    name="sft",
    version=1,
    config=SftConfig,
    image="torch",
    gpu="preferred",
    reads={
        "conversations": Read("corpus_prep", "conversations", CONVERSATIONS),
        "tokenizer": Read("tokenizer", "tokenizer", TOKENIZER_BUNDLE),
        "tokens": Read("tokenizer", "tokens", TOKEN_SHARDS),
        "model": Read("pretrain", "model", CHECKPOINT),
    },
    writes={"model": CHECKPOINT, "preview": BATCH_PREVIEW},
    summary="teach the base model to answer in a chat and to call tools; loss on its own words only",
)
