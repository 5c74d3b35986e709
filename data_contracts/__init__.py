"""What stages exchange: Parquet tables, safetensors and JSON under named, versioned contracts.

A contract changes only together with its version; `frozen/` holds a snapshot of each, and a test compares.
"""

from data_contracts.agent import AGENT_RESULTS, AGENT_SCENARIOS, AGENT_TRACE
from data_contracts.benchmark import BENCHMARK
from data_contracts.checkpoint import BATCH_PREVIEW, CHECKPOINT
from data_contracts.contract import Contract, Violation
from data_contracts.conversations import CONVERSATIONS
from data_contracts.dedup_index import DEDUP_INDEX
from data_contracts.document_scores import DOCUMENT_SCORES
from data_contracts.documents import DOCUMENTS, FUNNEL, REJECTS
from data_contracts.eval_results import EVAL_PREDICTIONS, EVAL_RESULTS
from data_contracts.manifest import Manifest
from data_contracts.preferences import PREFERENCES
from data_contracts.quantized_checkpoint import QUANTIZED_CHECKPOINT
from data_contracts.token_shards import TOKEN_SHARDS
from data_contracts.tokenizer_bundle import TOKENIZER_BUNDLE
from data_contracts.vector_store import CHROMA_PROJECTION, VECTOR_STORE

ALL_CONTRACTS = (
    DOCUMENTS,
    REJECTS,
    FUNNEL,
    DEDUP_INDEX,
    DOCUMENT_SCORES,
    CONVERSATIONS,
    PREFERENCES,
    BENCHMARK,
    AGENT_SCENARIOS,
    TOKENIZER_BUNDLE,
    TOKEN_SHARDS,
    CHECKPOINT,
    BATCH_PREVIEW,
    QUANTIZED_CHECKPOINT,
    VECTOR_STORE,
    CHROMA_PROJECTION,
    AGENT_TRACE,
    AGENT_RESULTS,
    EVAL_RESULTS,
    EVAL_PREDICTIONS,
)

__all__ = [
    "AGENT_RESULTS",
    "AGENT_SCENARIOS",
    "AGENT_TRACE",
    "ALL_CONTRACTS",
    "BATCH_PREVIEW",
    "BENCHMARK",
    "CHECKPOINT",
    "CHROMA_PROJECTION",
    "CONVERSATIONS",
    "DEDUP_INDEX",
    "DOCUMENTS",
    "DOCUMENT_SCORES",
    "EVAL_PREDICTIONS",
    "EVAL_RESULTS",
    "FUNNEL",
    "PREFERENCES",
    "QUANTIZED_CHECKPOINT",
    "REJECTS",
    "TOKENIZER_BUNDLE",
    "TOKEN_SHARDS",
    "VECTOR_STORE",
    "Contract",
    "Manifest",
    "Violation",
]
