"""Scores with their uncertainty, and the predictions that they were computed from."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule

EVAL_RESULTS = Contract(
    name="eval_results",
    version=1,
    summary="one row per model, task and metric: value, interval, baselines, verdict",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "model": pa.string(),
                    "task": pa.string(),
                    "protocol": pa.string(),
                    "metric": pa.string(),
                    "value": pa.float64(),
                    "ci_low": pa.float64(),
                    "ci_high": pa.float64(),
                    "num_items": pa.int64(),
                    "chance": pa.float64(),
                    "best_constant": pa.float64(),
                    "verdict": pa.string(),
                }
            ),
        ),
    ),
)

EVAL_PREDICTIONS = Contract(
    name="eval_predictions",
    version=1,
    summary="per question and model: the log-likelihood of every choice",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "question_id": pa.string(),
                    "task": pa.string(),
                    "model": pa.string(),
                    "protocol": pa.string(),
                    "choice_log_likelihoods": pa.list_(pa.float64()),
                    "answer_index": pa.int32(),
                    "predicted_index": pa.int32(),
                }
            ),
        ),
    ),
)
