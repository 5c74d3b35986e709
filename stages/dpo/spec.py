"""What the DPO stage reads, writes and can be told."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_contracts import AGENT_SCENARIOS, CHECKPOINT, PREFERENCES, TOKEN_SHARDS, TOKENIZER_BUNDLE
from stages.runtime.spec import Read, StageConfig, StageSpec

ONLINE = frozenset({"grpo", "ppo"})
"""Methods that learn from answers which the model samples itself and a program judges, not from pairs."""

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


TUNED_ON_PAIRS = ("dpo", "ipo", "orpo", "simpo", "kto")
OF_METHODS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("beta", "max_chosen_drop", "answered_prompts", "answer_tokens"): TUNED_ON_PAIRS,
    ("epochs", "batch_pairs", "context_tokens", "validation_pairs"): (*TUNED_ON_PAIRS, "reward"),
    ("max_kl", "max_bits_per_byte_increase", "on_degradation"): (*TUNED_ON_PAIRS, "grpo", "ppo"),
    ("label_smoothing", "robust", "length_normalised"): ("dpo",),
    ("sft_term",): ("dpo", "ipo", "simpo"),
    ("simpo_gamma",): ("simpo",),
    ("desirable_weight", "undesirable_weight"): ("kto",),
    ("reward_margin",): ("reward",),
    ("updates", "prompts_per_step", "group_size", "updates_per_rollout", "max_answer_tokens", "max_calls"): (
        "grpo",
        "ppo",
    ),
    ("rollout_temperature", "rollout_top_p", "clip_low", "clip_high", "kl_coefficient"): ("grpo", "ppo"),
    ("loss_mean", "overlong_tokens", "answer_reward", "format_reward", "tool_reward"): ("grpo", "ppo"),
    ("answer_form", "multi_step_fraction", "own_phrasings_fraction", "validation_tasks"): ("grpo", "ppo"),
    ("divide_by_std", "dynamic_sampling"): ("grpo",),
    ("discount", "gae_decay", "value_coefficient", "value_clip"): ("ppo",),
}
"""Settings -> the methods that heed them; not those that a preset may set whatever the method is."""


class DpoConfig(StageConfig):
    """Settings of preference learning; direct preference optimisation is the default method."""

    method: Literal["dpo", "ipo", "orpo", "simpo", "kto", "reward", "grpo", "ppo"] = "dpo"
    """What is learnt, and from what; the README's table says when to take which."""
    beta: PositiveFloat | Literal["auto"] = "auto"
    """How closely the policy is held to the reference: a larger one allows less change for the same loss.
    Two methods have no reference: in orpo it is the weight of the odds ratio, in simpo that of the margin.
    "auto" is 0.1, for simpo 2. In grpo and ppo the price of the KL is `kl_coefficient`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of dpo's pairs that may be the wrong way round: such a share asks for less (conservative DPO)."""
    robust: bool = False
    """Take the bias of label_smoothing out of dpo's loss instead: robust DPO."""
    length_normalised: bool = False
    """Compare dpo's gains per token; then beta is to be about an answer's length times as large."""
    sft_term: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Weight of the chosen answer's own loss, nats per token, beside dpo, ipo or simpo; "auto" is 1 for dpo,
    whose small models forget how to end an answer without, and 0 for the others."""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5
    """The margin that simpo asks for."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of good answers in kto; raise it where there are fewer of them than of bad ones."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of bad answers in kto."""
    reward_margin: Annotated[float, Field(ge=0)] = 0.0
    """By how much a reward model's score of the chosen answer is to be the higher one."""
    epochs: PositiveFloat | Literal["auto"] = "auto"
    """How often each pair is seen; "auto" is as often as makes 40 updates, but once at least and three
    times at most: few pairs teach too little in one pass."""
    max_pairs: PositiveInt = 4000
    """Train on at most so many pairs, or single answers, of those that the method can use; drawn by hash."""
    context_tokens: PositiveInt | Literal["auto"] = "auto"
    """Longest prompt with its answer; "auto" is the longest text that the model can read."""
    batch_pairs: PositiveInt = 32
    """Pairs of one update; two single answers count as one."""
    micro_batch_pairs: PositiveInt | Literal["auto"] = "auto"
    """Most pairs in memory at once; "auto" is as many as make about 4,096 tokens, 16 at most. Lower it
    when memory runs out; the result stays the same to rounding."""
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Peak learning rate; "auto" is 2.5e-5 at width 256 and falls with the width. 3e-4 has ruined models.
    A reward model, whose head begins with nothing, takes ten times as much."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises to its peak; then it falls linearly."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decay of the matrices; the reference already holds the weights in place."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Longest gradient that is taken as it is, by norm; 0 switches clipping off."""
    max_bits_per_byte_increase: Annotated[float, Field(ge=0)] = 0.05
    """How many bits per byte held-out documents may cost more after the stage."""
    max_kl: PositiveFloat = 1.0
    """Most nats per token that the policy may lie from the reference on held-out chosen answers: training
    stops."""
    max_chosen_drop: PositiveFloat = 1.0
    """Most nats per token by which held-out chosen answers may become less likely: training stops."""
    on_degradation: Literal["fail", "warn"] = "fail"
    """What happens when one of these bounds is passed: "warn" keeps the last good weights, or the damaged
    model where it is the documents that cost more."""
    seed: int = 0
    """Of the order of the pairs."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores. Another number changes the last bits of the weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; "auto" is bfloat16 where the hardware multiplies it."""
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
    updates: PositiveInt = 80
    """How many updates grpo and ppo make."""
    prompts_per_step: PositiveInt = 16
    """Different tasks that are answered for one update."""
    group_size: PositiveInt = 8
    """Answers to each task; grpo compares them with each other, so it needs two at least."""
    updates_per_rollout: PositiveInt = 1
    """Updates with the same answers; from the second on the policy is another, and clipping counts."""
    max_answer_tokens: Annotated[int, Field(ge=16)] = 96
    """Longest answer, with calls and results; what is not done by then has no right answer."""
    max_calls: PositiveInt = 3
    """Calls of the calculator that one answer may make."""
    rollout_temperature: PositiveFloat = 1.0
    """Of sampled answers; a lower one explores less."""
    rollout_top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the fewest tokens that together have this probability; below 1 the gradient is biased."""
    clip_low: Fraction = 0.2
    """How much rarer an update may make a token before it gains nothing by that."""
    clip_high: PositiveFloat = 0.28
    """How much likelier; above `clip_low` it lets rare tokens grow (DAPO)."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Price of going away from the SFT model; above 0 a second copy of the model sits in memory."""
    loss_mean: Literal["token", "answer", "constant"] = "token"
    """What weighs the same: every token (DAPO), every answer (GRPO), or tokens over a constant (Dr. GRPO)."""
    divide_by_std: bool = True
    """Divide advantages by the spread of their group; Dr. GRPO does not."""
    dynamic_sampling: bool = True
    """grpo: replace groups whose rewards are all the same by other tasks, in up to three draws (DAPO)."""
    overlong_tokens: Annotated[int, Field(ge=0)] = 0
    """An answer that comes this near to `max_answer_tokens` loses reward, up to 1 (DAPO); 0 is never."""
    answer_reward: Annotated[float, Field(ge=0)] = 1.0
    """Reward of the right number."""
    format_reward: Annotated[float, Field(ge=0)] = 0.1
    """Reward of turns that are well formed and of the form that `answer_form` asks for."""
    tool_reward: Annotated[float, Field(ge=0)] = 0.5
    """Reward of calls that are valid, ask the right thing, and whose result is used."""
    answer_form: str = ""
    """A regular expression that an answer has to match from end to end; "" takes any."""
    multi_step_fraction: Fraction = 0.25
    """Share of tasks that need a second calculation on the result of the first."""
    own_phrasings_fraction: Fraction = 0.5
    """Share of tasks that are phrased in ways which no conversation has."""
    validation_tasks: Annotated[int, Field(ge=2)] = 400
    """Held-out tasks, half of them phrased as none in training; answered before, during and after."""
    discount: Fraction = 1.0
    """ppo: what a reward one token later is worth now."""
    gae_decay: Fraction = 0.95
    """ppo: lambda of generalised advantage estimation; 1 trusts rewards alone, 0 the learned values alone."""
    value_coefficient: PositiveFloat = 0.5
    """ppo: weight of the values' loss, which trains the same layers."""
    value_clip: PositiveFloat = 0.2
    """ppo: a value that moves farther than this in one update gains nothing."""
    answered_prompts: PositiveInt = 64
    """Held-out prompts that are answered before and after, to compare the lengths."""
    answer_tokens: PositiveInt = 128
    """Longest of these answers."""
    checkpoint_every_seconds: PositiveFloat = 30.0
    """At most so much training is lost by a kill."""

    @field_validator("answer_form")
    @classmethod
    def _is_a_regular_expression(cls, form: str) -> str:
        try:
            re.compile(form)
        except re.error as problem:
            raise ValueError(f"{form!r} is no regular expression: {problem}") from None
        return form

    @model_validator(mode="after")
    def _heeded_by_the_method(self) -> Self:
        """A setting that would not count is a mistake."""
        for names, methods in OF_METHODS.items():
            if self.method not in methods:
                why = f"with method = {self.method!r}; it is for {', '.join(methods)}"
                self.refuse_without_effect(names, why)
        if self.robust and not self.label_smoothing:
            raise ValueError(
                "robust = True has no effect without label_smoothing, the share of wrong pairs: set it too"
            )
        return self


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
        "scenarios": Read("corpus_prep", "scenarios", AGENT_SCENARIOS),
    },
    writes={"model": CHECKPOINT},
    summary="prefer the better of two answers: DPO and its kin, with a check on what it costs",
)
