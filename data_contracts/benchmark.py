"""Multiple-choice questions that the corpus is decontaminated against and the models are scored on."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule

BENCHMARK = Contract(
    name="benchmark",
    version=1,
    summary="multiple-choice questions with the index of the right answer",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "question_id": pa.string(),
                    "task": pa.string(),
                    "question": pa.string(),
                    "choices": pa.list_(pa.string()),
                    "answer_index": pa.int32(),
                    "source": pa.string(),
                }
            ),
            unique="question_id",
        ),
    ),
)
