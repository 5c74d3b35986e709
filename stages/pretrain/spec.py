"""What pretrain reads, writes and can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_contracts.checkpoint import CHECKPOINT
from data_contracts.token_shards import TOKEN_SHARDS
from data_contracts.tokenizer_bundle import TOKENIZER_BUNDLE
from stages.pretrain.checkpoint_files import external_digests, outside
from stages.runtime.spec import Read, StageConfig, StageSpec

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
WHO_WORKS = frozenset(
    {
        "micro_batch_size",
        "gpus",
        "processes",
        "nodes",
        "rendezvous",
        "data_parallel",
        "prefetch",
        "checkpoints_kept",
        "checkpoint_milestone_steps",
    }
)
"""Not in the fingerprint, so that a run goes on from its checkpoints on other devices."""
Architecture = Literal[
    "depth",
    "tiny-llm-zh-16m",
    "tiny-llm-zh-42m",
    "tiny-llm-zh-92m",
    "tiny-llm-zh-210m",
    "tiny-llm-zh-440m",
    "tiny-llm-zh-1.5b",
    "tinyllama3",
    "minimind-64m",
    "minimind-moe",
    "gpt2-124m",
    "qwen2-0.5b",
    "qwen3-0.6b",
]
OF_THE_DIAL = (
    "qk_norm",
    "tie_word_embeddings",
    "sliding_window",
    "num_experts",
    "num_experts_per_tok",
    "expert_balance",
)
"""Settings that a known model's shape decides; `depth` is one too, but the presets have it."""
WITH_EXPERTS = frozenset({"minimind-moe"})
"""Known models that choose among experts."""


class PretrainConfig(StageConfig):
    """One dial, and everything that follows from it can still be set by hand."""

    depth: Annotated[int, Field(ge=1, le=64)] = 4
    """Layers. Width (64 per layer), heads, learning rate, batch and token budget follow from it. Passed over
    where `architecture`, `shape_from` or `continue_from` has the shape."""
    architecture: Architecture = "depth"
    """The shape: what follows from `depth`, or that of a known model (stages/whitebox/shapes.py)."""
    shape_from: str = ""
    """A Hugging Face config.json, or a folder with one, to take the shape of: RoPE's base and scaling,
    biases, key-value heads, windows, experts. The vocabulary is the tokenizer's; the weights are fresh."""
    sliding_window: PositiveInt | None = None
    """A token sees only this many tokens, itself included; None is all before it."""
    num_experts: Annotated[int, Field(ge=0)] = 0
    """Feed-forward layers that each token chooses from; 0 is one for all tokens. Needs `qk_norm`."""
    num_experts_per_tok: PositiveInt = 2
    """How many of them a token takes; together they are as wide as the one layer would be."""
    expert_balance: Literal["loss", "bias"] = "loss"
    """What keeps the experts' loads equal: a loss (the model is a Qwen3-MoE), or DeepSeek-V3's bias beside
    one shared expert (a dots1; arXiv:2408.15664)."""
    context_tokens: Annotated[int, Field(ge=8)] = 512
    """Tokens of one training row, and the longest text that the model can read; where its shape is that of a
    file or of an earlier model, it keeps the context that this names, which must be no shorter."""
    train_tokens: PositiveInt | Literal["chinchilla"] = "chinchilla"
    """Tokens to train on; "chinchilla" is 20 per parameter (Hoffmann et al. 2022, arXiv:2203.15556)."""
    global_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens of one update; "auto" follows from the token budget (Step Law, arXiv:2503.04715)."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Most rows in memory at once, of which the largest equal part of an update is taken; "auto" probes the
    memory. The update stays the same, but for rounding (and for the balancing loss of experts)."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass: same gradients, less memory, a third more work."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Of the layers' matrices; embeddings and norms always have AdamW."""
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """AdamW's peak; "auto" follows from the width, or without Muon from the Step Law (arXiv:2503.04715)."""
    matrix_learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Muon's peak; "auto" is 0.02: it is the length of an update whatever the width, so it follows from
    nothing."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    decay_fraction: Fraction = 0.95
    """Share of the steps in which it falls; what is between the two is the stable part."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """How it falls: linear is best for a budget that is known (arXiv:2502.15938), cosine the usual one."""
    min_learning_rate_fraction: Fraction = 0.0
    """Where the learning rate ends, as a share of its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of the matrices; norms and embeddings have none."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient that is taken as it is, by norm; 0 switches clipping off."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of log(Z)^2 in the training loss (1e-4 in PaLM, arXiv:2204.02311), against drifting logits."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Average the weights over about 1 / (1 - decay) steps; evaluated and saved in place of the last."""
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
    """A model that goes on warms up again to this share of a fresh one's peak. Only of peaks that are "auto":
    one that is set by hand is taken as it is."""
    seed: int = 0
    """Of the first weights and of the order of the documents."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores. Another number changes the last bits of the weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; "auto" is bfloat16 where the hardware multiplies it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Fuse each layer's small operations with torch.compile; "auto" does it where the run is long enough."""
    prefetch: bool = True
    """Read the next batch in a thread while the model computes on this one; the batches stay the same."""
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
    checkpoints_kept: PositiveInt = 2
    """The newest so many stay until the run is over."""
    checkpoint_milestone_steps: PositiveInt | None = None
    """Also keep those of every so many steps; None keeps the newest only."""
    spike_factor: Annotated[float, Field(ge=0)] = 20.0
    """Skip a step whose gradient is so many times as long as usual; 0 skips only what is not finite."""
    max_skipped_in_a_row: PositiveInt = 3
    """So many skipped steps one after the other end the run."""
    max_skipped_steps: PositiveInt = 20
    """So many skipped steps in all end the run."""
    gpus: PositiveInt | Literal["all"] = 1
    """GPUs of each node, one process each. The global batch stays; sums are rounded otherwise."""
    processes: PositiveInt = 1
    """Processes of each node where there is no GPU; they share its cores."""
    nodes: PositiveInt = 1
    """Machines that train together; each of the others runs `python -m stages.pretrain.join`."""
    rendezvous: str = ""
    """HOST:PORT of this machine, as the others reach it; only with more than one node."""
    data_parallel: Literal["ddp", "fsdp"] = "ddp"
    """"ddp": the whole model on each device; "fsdp": weights, gradients and moments divided among them."""

    @model_validator(mode="after")
    def _one_source_of_the_shape(self) -> PretrainConfig:
        """A known or an earlier model has all of its shape; a setting that would not count is a mistake."""
        if self.continue_from:
            self._refuse_beside("continue_from", ("architecture", "shape_from", *OF_THE_DIAL))
        elif self.shape_from:
            self._refuse_beside("shape_from", ("architecture", *OF_THE_DIAL))
        elif self.architecture != "depth":
            self._refuse_beside("architecture", OF_THE_DIAL)
        if not self.num_experts:
            names = ("num_experts_per_tok", "expert_balance")
            self.refuse_without_effect(names, "without num_experts; leave it out")
        if self.optimizer != "muon":
            self.refuse_without_effect(["matrix_learning_rate"], 'with optimizer = "adamw"; leave it out')
        if self.continue_from and self._peaks_are_by_hand:
            why = "where every learning rate is set by hand: these are taken as they are; leave it out"
            self.refuse_without_effect(["continue_learning_rate_fraction"], why)
        if self.nodes == 1:
            self.refuse_without_effect(["rendezvous"], "with one node; leave it out")
        if self.num_experts and not self.qk_norm:
            raise ValueError("num_experts needs qk_norm = true: no known architecture has experts without")
        if 0 < self.num_experts < self.num_experts_per_tok:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, expected at most num_experts, "
                f"{self.num_experts}"
            )
        return self

    @property
    def _peaks_are_by_hand(self) -> bool:
        has_muon = self.optimizer == "muon"
        return self.learning_rate != "auto" and not (has_muon and self.matrix_learning_rate == "auto")

    def _refuse_beside(self, whole: str, names: tuple[str, ...]) -> None:
        why = f"with {whole} = {getattr(self, whole)!r}; leave one of the two out"
        self.refuse_without_effect(names, why)

    @property
    def has_experts(self) -> bool:
        """Whether a fresh model will choose among experts; files that are named are not looked into."""
        is_of_a_file = bool(self.continue_from or self.shape_from)
        return not is_of_a_file and (self.num_experts > 0 or self.architecture in WITH_EXPERTS)


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
    not_in_key=WHO_WORKS | {"continue_from", "shape_from"},
    summary="train the base model: a hand-written decoder, one size dial, resumable bit for bit",
)
