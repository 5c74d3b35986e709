"""What quantize reads, writes and can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_contracts.checkpoint import CHECKPOINT
from data_contracts.quantized_checkpoint import QUANTIZED_CHECKPOINT
from data_contracts.token_shards import TOKEN_SHARDS
from data_contracts.tokenizer_bundle import TOKENIZER_BUNDLE
from stages.runtime.spec import Read, StageConfig, StageSpec

PositiveInt = Annotated[int, Field(ge=1)]


class QuantizeConfig(StageConfig):
    """How weights become integers, how the loss is measured, and how much of it is too much."""

    int4_method: Literal["gptq", "nearest"] = "gptq"
    """How 4-bit integers are chosen: "gptq" looks at the layers' inputs, "nearest" only at the weights."""
    group_size: Literal[32, 64, 128] = 32
    """Neighbouring 4-bit weights that share a scale; it must divide the model's width. Smaller is closer to
    the float model and larger on disk: 16 bits per group."""
    calibration_tokens: PositiveInt = 8192
    """Training tokens that GPTQ watches the layers' inputs on."""
    max_int8_increase: Annotated[float, Field(ge=0)] = 0.01
    """The stage fails if int8 costs more bits per byte than this."""
    max_int4_increase: Annotated[float, Field(ge=0)] = 0.1
    """The stage fails if int4 costs more bits per byte than this."""
    max_validation_bytes: PositiveInt = 120_000
    """About so much held-out text is scored by each of the three models, whole documents evenly spread."""
    speed_tokens: Annotated[int, Field(ge=0)] = 64
    """Tokens that each model decodes in one round of the speed measurement; 0 leaves it out."""
    speed_rounds: PositiveInt = 5
    """Rounds; in each, the models decode one after the other, so that a busy machine slows them alike."""
    sample_prompts: tuple[str, ...] = ("Return a new", "The module", "class Counter", "In the year")
    """Beginnings of documents to continue with each model; the same as in the stages before."""
    chat_prompts: tuple[str, ...] = (
        "What does textwrap.dedent do?",
        "Calculate 12*(3+4).",
        "Look up textwrap.dedent.",
        "Search for joining two paths.",
        "Hello!",
    )
    """Questions to answer with each model; the same as in sft and dpo, so that the report can show all."""
    sample_tokens: PositiveInt = 48
    """Tokens of one sample."""
    seed: int = 0
    """Of the calibration rows and of the intervals."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores."""


SPEC = StageSpec(
    name="quantize",
    version=1,
    config=QuantizeConfig,
    image="torch",
    gpu="preferred",
    reads={
        "model": Read("dpo", "model", CHECKPOINT),
        "tokens": Read("tokenizer", "tokens", TOKEN_SHARDS),
        "tokenizer": Read("tokenizer", "tokenizer", TOKENIZER_BUNDLE),
    },
    writes={"int8": QUANTIZED_CHECKPOINT, "int4": QUANTIZED_CHECKPOINT},
    summary="write the assistant in 8 and in 4 bits, and measure what that costs, saves and speeds up",
)
