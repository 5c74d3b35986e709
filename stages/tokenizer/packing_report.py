"""How well the documents would pack into rows: best-fit against cutting them wherever a row ends.

The tokenizer stage packs nothing: pretraining does, and knows its rows. But what packing will cost follows
from the lengths, and who chooses `context_tokens` wants to see it before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open

from stages.runtime.session import StageSession
from stages.whitebox.best_fit import cut_by_concatenation, pack_documents

CONTEXTS = (512, 2048, 8192)
MAX_DOCUMENTS = 2_000_000
"""More are not looked at; in shuffled shards the first ones are a fair sample."""
COLUMNS = [
    "context_tokens",
    "rows",
    "padding %",
    "tokens in cut documents %",
    "fitting documents that rows end to end would cut %",
]


def report_packing(tokens: Path, session: StageSession) -> None:
    """A table for the training split in the part `tokens`, in rows of 512, 2,048 and 8,192 tokens."""
    lengths_D = training_lengths(tokens)
    rows = []
    for context_tokens in CONTEXTS:
        packed = pack_documents(lengths_D, context_tokens)
        cut = cut_by_concatenation(lengths_D, context_tokens)
        percent = [packed.padding_fraction, packed.cut_tokens_fraction, cut]
        rows.append([context_tokens, packed.num_rows, *(round(100 * share, 3) for share in percent)])
    session.table(
        "packing",
        COLUMNS,
        rows,
        caption=f"best-fit packing of {len(lengths_D):,} training documents: who fits a row is not cut",
    )


def training_lengths(tokens: Path) -> np.ndarray:
    """Tokens of each training document, BOS and EOS counted; int64 [at most 2,000,000]."""
    found, count = [np.zeros(0, dtype=np.int64)], 0
    for path in sorted(tokens.glob("train-*.safetensors")):
        with safe_open(path, framework="numpy") as shard:
            found.append(np.diff(shard.get_tensor("doc_offsets")))
        count += len(found[-1])
        if count >= MAX_DOCUMENTS:
            break
    return np.concatenate(found)[:MAX_DOCUMENTS]
