"""What benchmark_eval reads, writes and can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_contracts.benchmark import BENCHMARK
from data_contracts.checkpoint import CHECKPOINT
from data_contracts.eval_results import EVAL_PREDICTIONS, EVAL_RESULTS
from data_contracts.quantized_checkpoint import QUANTIZED_CHECKPOINT
from data_contracts.token_shards import TOKEN_SHARDS
from data_contracts.tokenizer_bundle import TOKENIZER_BUNDLE
from stages.runtime.spec import Read, StageConfig, StageSpec

PositiveInt = Annotated[int, Field(ge=1)]


class BenchmarkEvalConfig(StageConfig):
    """How much is scored, and by which figure models are compared."""

    max_questions: PositiveInt = 200
    """At most so many questions, the same for all models, drawn by `seed`. The interval of an accuracy is
    about +-7 points wide at 200, +-3 at 1,000."""
    max_validation_bytes: PositiveInt = 60_000
    """About so much held-out text is scored by each model, whole documents evenly spread."""
    compare_by: Literal["acc", "acc_norm", "acc_bytes"] = "acc_norm"
    """The accuracy that models are compared by and predictions are made by; all three are reported."""
    max_rows: PositiveInt = 64
    """Choices that are scored at once; lower it when memory runs out."""
    seed: int = 0
    """Of the drawn questions and of the intervals."""
    num_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes all cores."""


SPEC = StageSpec(
    name="benchmark_eval",
    version=1,
    config=BenchmarkEvalConfig,
    image="torch",
    gpu="preferred",
    reads={
        "benchmark": Read("corpus_prep", "benchmark", BENCHMARK),
        "tokens": Read("tokenizer", "tokens", TOKEN_SHARDS),
        "tokenizer": Read("tokenizer", "tokenizer", TOKENIZER_BUNDLE),
        "base": Read("pretrain", "model", CHECKPOINT),
        "sft": Read("sft", "model", CHECKPOINT),
        "dpo": Read("dpo", "model", CHECKPOINT),
        "int8": Read("quantize", "int8", QUANTIZED_CHECKPOINT),
        "int4": Read("quantize", "int4", QUANTIZED_CHECKPOINT),
    },
    writes={"results": EVAL_RESULTS, "predictions": EVAL_PREDICTIONS},
    summary="score base, sft, dpo, int8 and int4 on the same texts and questions, and say what is luck",
)
