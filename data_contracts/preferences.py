"""Preference pairs: one prompt, a chosen and a rejected answer."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule
from data_contracts.conversations import LINEAGE, MESSAGE
from data_contracts.documents import SPLITS

#: chosen, rejected: messages of the assistant, which may think and call tools.
PREFERENCES = Contract(
    name="preferences",
    version=2,
    summary="prompt, chosen and rejected answer, with the tools on offer",
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
