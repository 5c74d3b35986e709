"""Contracts catch what breaks them, and cannot change in silence."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from data_contracts import (
    ALL_CONTRACTS,
    CHECKPOINT,
    DOCUMENTS,
    QUANTIZED_CHECKPOINT,
    TOKEN_SHARDS,
    TOKENIZER_BUNDLE,
    snapshot,
)
from data_contracts.contract import Contract, FileRule, JsonRule, TableRule
from data_contracts.tables import PartWriter, read_part, read_rows, write_part


def document(number: int, **changes: object) -> dict[str, object]:
    text = f"Document {number} tells a short story."
    row: dict[str, object] = {
        "doc_id": f"id{number}",
        "source": "test",
        "title": f"title {number}",
        "kind": "text",
        "language": "en",
        "split": "train",
        "licence": "CC0",
        "origin": "texts.jsonl",
        "byte_start": 40 * number,
        "byte_end": 40 * number + 40,
        "num_bytes": len(text),
        "text": text,
    }
    return row | changes


def write_shard(path: Path, split: str) -> None:
    tensors = {
        "tokens": np.arange(10, dtype=np.uint16),
        "doc_offsets": np.array([0, 10], dtype=np.int64),
        "doc_num_bytes": np.array([20], dtype=np.int64),
    }
    metadata = {"contract": "token_shards@1", "vocab_size": "16", "tokenizer_sha256": "0", "split": split}
    save_file(tensors, path, metadata=metadata)


def write_both_shards(folder: Path) -> None:
    for split in ("train", "validation"):
        write_shard(folder / f"{split}-00000.safetensors", split)


def test_every_contract_is_frozen_as_it_is() -> None:
    assert snapshot.problems() == []


def test_a_changed_contract_asks_for_a_new_version(tmp_path: Path) -> None:
    snapshot.write_new([DOCUMENTS], tmp_path)
    rule = DOCUMENTS.rules[0]
    assert isinstance(rule, TableRule)
    changed = dataclasses.replace(
        DOCUMENTS, rules=(dataclasses.replace(rule, schema=rule.schema.append(pa.field("x", pa.int8()))),)
    )
    assert snapshot.problems([changed], tmp_path) == [
        "documents@2 differs from documents.v2.json: bump its version to 3"
    ]
    assert snapshot.write_new([changed], tmp_path) == []


@pytest.mark.parametrize("contract", [CHECKPOINT, QUANTIZED_CHECKPOINT])
def test_a_model_needs_no_more_of_its_tokenizer_than_the_tokenizer_stage_writes(contract: Contract) -> None:
    minimum = {rule.pattern: rule.minimum for rule in TOKENIZER_BUNDLE.rules if isinstance(rule, FileRule)}
    asked = [rule for rule in contract.rules if isinstance(rule, FileRule) and rule.pattern in minimum]
    assert "tokenizer.model" in [rule.pattern for rule in asked]
    assert [rule.minimum <= minimum[rule.pattern] for rule in asked] == [True] * len(asked)


def test_contract_names_are_unique() -> None:
    assert len({contract.name for contract in ALL_CONTRACTS}) == len(ALL_CONTRACTS)


def test_written_rows_come_back_and_keep_the_contract(tmp_path: Path) -> None:
    rows = [document(number) for number in range(2500)]
    assert write_part(tmp_path, DOCUMENTS, rows) == 2500
    assert DOCUMENTS.check(tmp_path) == []
    assert list(read_rows(tmp_path)) == rows
    assert read_part(tmp_path, ["doc_id"]).num_rows == DOCUMENTS.count_rows(tmp_path) == 2500


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        write_part(tmp_path / name, DOCUMENTS, (document(number) for number in range(1500)))
        digests.add(hashlib.sha256((tmp_path / name / "part-00000.parquet").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_row_with_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with PartWriter(tmp_path, DOCUMENTS) as writer, pytest.raises(KeyError, match="colour"):
        writer.write(document(1, colour="red"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([document(1), document(1)], "column 'doc_id' must be unique: 2 rows, 1 distinct values"),
        ([document(1, split="test")], "column 'split' holds ['test'], allowed are ['train', 'validation']"),
    ],
)
def test_broken_invariants_are_named(tmp_path: Path, rows: list[dict[str, object]], expected: str) -> None:
    write_part(tmp_path, DOCUMENTS, rows)
    assert [violation.message for violation in DOCUMENTS.check(tmp_path)] == [expected]


def test_wrong_columns_are_named_with_what_was_found(tmp_path: Path) -> None:
    pq.write_table(pa.table({"doc_id": [1], "text": ["x"]}), tmp_path / "part-00000.parquet")
    messages = [violation.message for violation in DOCUMENTS.check(tmp_path)]
    assert "column 'doc_id' is int64, expected string" in messages
    assert "column 'title' (string) is missing; found: doc_id, text" in messages


def test_a_parquet_file_cut_short_is_a_violation(tmp_path: Path) -> None:
    write_part(tmp_path, DOCUMENTS, [document(1)])
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    [violation] = DOCUMENTS.check(tmp_path)
    assert violation.file == "part-00000.parquet"
    assert "no readable Parquet file" in violation.message


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in DOCUMENTS.check(tmp_path / "nowhere")[0].message
    assert "the folder holds nothing" in DOCUMENTS.check(tmp_path)[0].message


def test_whole_shards_pass(tmp_path: Path) -> None:
    write_both_shards(tmp_path)
    assert TOKEN_SHARDS.check(tmp_path) == []


@pytest.mark.parametrize("change", [-1, +1])
def test_a_shard_of_the_wrong_length_is_a_violation(tmp_path: Path, change: int) -> None:
    write_both_shards(tmp_path)
    path = tmp_path / "train-00000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0")
    [violation] = TOKEN_SHARDS.check(tmp_path)
    assert "cut short or damaged" in violation.message


def test_a_tensor_of_another_type_is_a_violation(tmp_path: Path) -> None:
    write_both_shards(tmp_path)
    save_file({"tokens": np.zeros(3, dtype=np.float32)}, tmp_path / "train-00000.safetensors")
    messages = " | ".join(violation.message for violation in TOKEN_SHARDS.check(tmp_path))
    assert "tensor 'tokens' is F32, expected U16 or U32" in messages
    assert "tensor 'doc_offsets' is missing" in messages
    assert "metadata key 'vocab_size' is missing" in messages


def test_no_safetensors_at_all(tmp_path: Path) -> None:
    write_both_shards(tmp_path)
    (tmp_path / "train-00000.safetensors").write_bytes(b"not a tensor file")
    assert "is no safetensors file" in TOKEN_SHARDS.check(tmp_path)[0].message


def test_json_rules(tmp_path: Path) -> None:
    contract = Contract("c", 1, "", (JsonRule("x.json", keys=("a", "b")),))
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert contract.check(tmp_path)[0].message == "keys ['b'] are missing"
    (tmp_path / "x.json").write_text("{")
    assert "is no readable JSON" in contract.check(tmp_path)[0].message
