"""What the agent is asked to do, what it did, and how that was judged."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule

PHRASINGS = ("seen", "unseen")

AGENT_SCENARIOS = Contract(
    name="agent_scenarios",
    version=1,
    summary="prompts with the tool calls and the answer that are expected",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "scenario_id": pa.string(),
                    "family": pa.string(),
                    "phrasing": pa.string(),
                    "prompt": pa.string(),
                    "expected_calls": pa.string(),
                    "expected_answer": pa.string(),
                }
            ),
            unique="scenario_id",
            allowed={"phrasing": PHRASINGS},
        ),
    ),
)

AGENT_TRACE = Contract(
    name="agent_trace",
    version=1,
    summary="every step of every scenario",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "scenario_id": pa.string(),
                    "step": pa.int32(),
                    "role": pa.string(),
                    "content": pa.string(),
                    "tool": pa.string(),
                    "arguments": pa.string(),
                    "result": pa.string(),
                    "num_tokens": pa.int32(),
                    "status": pa.string(),
                }
            ),
        ),
    ),
)

AGENT_RESULTS = Contract(
    name="agent_results",
    version=1,
    summary="one verdict per scenario",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "scenario_id": pa.string(),
                    "family": pa.string(),
                    "phrasing": pa.string(),
                    "num_calls": pa.int32(),
                    "valid_calls": pa.int32(),
                    "tool_right": pa.bool_(),
                    "exact_calls": pa.bool_(),
                    "answer_right": pa.bool_(),
                    "success": pa.bool_(),
                    "num_steps": pa.int32(),
                    "status": pa.string(),
                    "final_answer": pa.string(),
                }
            ),
            unique="scenario_id",
            allowed={"phrasing": PHRASINGS},
        ),
    ),
)
