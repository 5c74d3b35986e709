"""Preference pairs: one prompt, a chosen and a rejected answer."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule
from data_contracts.conversations import MESSAGE
from data_contracts.documents import SPLITS

PREFERENCES = Contract(
    name="preferences",
    version=1,
    summary="prompt, chosen and rejected answer",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "pair_id": pa.string(),
                    "source": pa.string(),
                    "kind": pa.string(),
                    "split": pa.string(),
                    "prompt": pa.list_(MESSAGE),
                    "chosen": pa.string(),
                    "rejected": pa.string(),
                }
            ),
            unique="pair_id",
            allowed={"split": SPLITS},
        ),
    ),
)
