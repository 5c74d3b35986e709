"""Conversations for supervised fine-tuning."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule
from data_contracts.documents import SPLITS

#: One turn. `tool_calls` is "" or a JSON list of {"name": ..., "arguments": {...}}.
MESSAGE = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.string()})

CONVERSATIONS = Contract(
    name="conversations",
    version=1,
    summary="multi-turn conversations, some with tool calls",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "conversation_id": pa.string(),
                    "source": pa.string(),
                    "kind": pa.string(),
                    "split": pa.string(),
                    "messages": pa.list_(MESSAGE),
                }
            ),
            unique="conversation_id",
            allowed={"split": SPLITS},
        ),
    ),
)
