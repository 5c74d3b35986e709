"""The nine stages in order. Importing this needs no torch: flows plan with it."""

from __future__ import annotations

from stages.agent_smoke.spec import SPEC as AGENT_SMOKE
from stages.benchmark_eval.spec import SPEC as BENCHMARK_EVAL
from stages.corpus_prep.spec import SPEC as CORPUS_PREP
from stages.dpo.spec import SPEC as DPO
from stages.pretrain.spec import SPEC as PRETRAIN
from stages.quantize.spec import SPEC as QUANTIZE
from stages.runtime.spec import StageSpec
from stages.sft.spec import SPEC as SFT
from stages.tokenizer.spec import SPEC as TOKENIZER
from stages.vector_store.spec import SPEC as VECTOR_STORE

STAGES: tuple[StageSpec, ...] = (
    CORPUS_PREP,
    TOKENIZER,
    PRETRAIN,
    SFT,
    DPO,
    QUANTIZE,
    VECTOR_STORE,
    AGENT_SMOKE,
    BENCHMARK_EVAL,
)
