"""Preferences: one prompt with a chosen and a rejected answer, or with a single one of them."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule
from data_contracts.conversations import LINEAGE, MESSAGE
from data_contracts.documents import SPLITS

#: chosen, rejected: messages of the assistant, which may think and call tools. One of the two is null where a
#: single answer was judged as good (chosen) or as bad (rejected).
PREFERENCES = Contract(
    name="preferences",
    version=3,
    summary="prompt, chosen and rejected answer or one of them, with the tools on offer",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "pair_id": pa.string(),
                    **LINEAGE,
                    "kind": pa.string(),
                    "split": pa.string(),
                    "tools": pa.string(),
                    "prompt": pa.list_(MESSAGE),
                    "chosen": MESSAGE,
                    "rejected": MESSAGE,
                }
            ),
            unique="pair_id",
            allowed={"split": SPLITS},
        ),
    ),
)
