"""What the SFT stage reads, writes and can be told."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_contracts import BATCH_PREVIEW, CHECKPOINT, CONVERSATIONS, TOKEN_SHARDS, TOKENIZER_BUNDLE
from stages.runtime.spec import Read, StageConfig, StageSpec
from stages.sft.outside_files import external_digests, outside

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


OF_AN_ADAPTER = (
    "adapter_rank",
    "adapter_alpha",
    "adapter_dropout",
    "adapter_targets",
    "adapter_embeddings",
    "adapter_from",
    "lora_plus_ratio",
)
OF_A_TEACHER = ("teacher_share", "teacher_temperature", "teacher_answers", "teacher_answer_tokens")


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
    adapter: Literal["none", "lora", "rslora", "dora", "qlora"] = "none"
    """What is trained: all weights, or an adapter beside them; qlora holds the weights in 4 bits meanwhile.
    The model that is written has the adapter added to its weights; the adapter itself is in `adapter/`."""
    adapter_rank: PositiveInt = 64
    """Columns of the adapter's two thin matrices."""
    adapter_alpha: PositiveFloat | Literal["auto"] = "auto"
    """Strength of the adapter: it counts alpha / rank times, with rslora alpha / sqrt(rank) times; "auto" is
    8 sqrt(rank), with rslora 8, so that the same learning rate suits every rank."""
    adapter_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are zeroed in training."""
    adapter_targets: tuple[str, ...] = ()
    """Linear layers that get an adapter, by the last part of their names (q_proj); none named is all."""
    adapter_embeddings: Literal["none", "control", "all"] = "all"
    """Which tokens' embeddings are trained beside it: the chat's control tokens, that no document ever held,
    or all tokens'; then the output matrix is trained too, where it is not the embedding itself."""
    adapter_from: str = ""
    """Folder of an adapter of this base model to go on from, ours or PEFT's; "" begins anew."""
    lora_plus_ratio: PositiveFloat = 1.0
    """How many times as fast the adapter's second matrix learns as its first (LoRA+, which takes 16)."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps in which the learning rate rises to its peak; then it falls linearly."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's decay of the matrices."""
    reasoning: Literal["keep", "drop", "last_turn"] = "keep"
    """Which of the assistant's reasoning a conversation shows, in training and, by the template beside the
    model, at serving: all, none, or that behind the last question (as Qwen3 and DeepSeek do)."""
    neftune_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the noise on the embeddings in training (NEFTune; 5 is usual); 0 adds none."""
    teacher: str = ""
    """Folder of a larger model with the same tokenizer to learn from; "" for none."""
    teacher_share: Fraction = 0.5
    """Share of the loss that is the distance to the teacher's probabilities; the rest is the usual loss."""
    teacher_temperature: PositiveFloat = 2.0
    """Both models' logits are divided by it before they are compared; more shows more of unlikely words."""
    teacher_answers: bool = False
    """Whether the teacher first writes the last answer of every training conversation anew."""
    teacher_answer_tokens: PositiveInt = 256
    """Longest answer of the teacher; where it is not through by then, the corpus' answer stays."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Evaluations without a lower held-out loss that end the training, with the best weights; 0 goes on."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient that is taken as it is, by norm; 0 switches clipping off."""
    seed: int = 0
    """Of the order of the rows and of the replayed documents."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores. Another number changes the last bits of the weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; "auto" is bfloat16 where the hardware multiplies it."""
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

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        """A setting that would not count is a mistake."""
        if self.adapter == "none":
            self.refuse_without_effect(
                OF_AN_ADAPTER, "without an adapter: set adapter = 'lora', or leave it out"
            )
        if not self.teacher:
            self.refuse_without_effect(
                OF_A_TEACHER, "without a teacher: set teacher to a model's folder, or leave it out"
            )
        if self.optimizer != "muon":
            self.refuse_without_effect(
                ["matrix_learning_rate"], "without Muon: set optimizer = 'muon', or leave it out"
            )
        return self


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
    external_inputs=external_digests,
    outside=outside,
    not_in_key=frozenset({"teacher", "adapter_from"}),
    summary="teach the base model to answer in a chat and to call tools; loss on its own words only",
)
