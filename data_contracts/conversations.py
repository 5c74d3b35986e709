"""Conversations for supervised fine-tuning."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule
from data_contracts.documents import SPLITS

#: id: "" where the call has none. arguments: JSON text of one object.
TOOL_CALL = pa.struct({"id": pa.string(), "name": pa.string(), "arguments": pa.string()})

#: One turn. reasoning: what an assistant thought before its content. tool_call_id: of the call that a tool
#: answers.
MESSAGE = pa.struct(
    {
        "role": pa.string(),
        "content": pa.string(),
        "reasoning": pa.string(),
        "tool_calls": pa.list_(TOOL_CALL),
        "tool_call_id": pa.string(),
    }
)

#: A turn of a conversation to train on. weight: how much an assistant's turn counts in the loss; null is 1, 0
#: is only read.
WEIGHTED_MESSAGE = pa.struct([*MESSAGE, pa.field("weight", pa.float64())])

#: Where a record is from, named and meant as in `documents`.
LINEAGE = {
    "source": pa.string(),
    "licence": pa.string(),
    "origin": pa.string(),
    "byte_start": pa.int64(),
    "byte_end": pa.int64(),
}

#: tools: JSON list of the functions on offer, in OpenAI's form, or "".
CONVERSATIONS = Contract(
    name="conversations",
    version=3,
    summary="multi-turn conversations with tools, tool calls, reasoning and weights where they have them",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "conversation_id": pa.string(),
                    **LINEAGE,
                    "kind": pa.string(),
                    "split": pa.string(),
                    "tools": pa.string(),
                    "messages": pa.list_(WEIGHTED_MESSAGE),
                }
            ),
            unique="conversation_id",
            allowed={"split": SPLITS},
        ),
    ),
)
