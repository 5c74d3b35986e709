"""The tokenizer stage from documents to bundle and shards."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from data_contracts import TOKEN_SHARDS, TOKENIZER_BUNDLE
from data_contracts.tables import read_rows
from flows.vocabulary import read_token_bytes
from stages.runtime.errors import UserError
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.runtime.store import file_sha256
from stages.tokenizer import run as stage
from stages.tokenizer.spec import SPEC, TokenizerConfig
from stages.whitebox.batches import TokenShards
from stages.whitebox.tokenizer import Tokenizer


def test_outputs_keep_their_contracts(built: Any) -> None:
    assert TOKENIZER_BUNDLE.check(built.outputs["tokenizer"]) == []
    assert TOKEN_SHARDS.check(built.outputs["tokens"]) == []


def test_documents_come_back_from_the_shards(built: Any) -> None:
    tokenizer = built.tokenizer
    for split in ("train", "validation"):
        rows = [row for row in read_rows(built.inputs["documents"]) if row["split"] == split]
        rows.sort(key=lambda row: hashlib.blake2b(f"0:{row['doc_id']}".encode(), digest_size=8).digest())
        shards = TokenShards(built.outputs["tokens"], split)
        assert shards.num_documents == len(rows)
        assert shards.num_bytes.tolist() == [len(row["text"].encode()) for row in rows]
        for index, row in enumerate(rows):
            first, *ids, last = shards.document(index).tolist()
            assert (first, last) == (tokenizer.bos_id, tokenizer.eos_id)
            assert tokenizer.decode(ids) == row["text"]


def test_shards_open_in_safetensors(built: Any) -> None:
    path = built.outputs["tokens"] / "train-00000.safetensors"
    with safe_open(path, framework="numpy") as shard:
        tokens, offsets = shard.get_tensor("tokens"), shard.get_tensor("doc_offsets")
        metadata = shard.metadata()
    assert (tokens.dtype, offsets.dtype) == (np.uint16, np.int64)
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens) == built.metrics["train_tokens"]
    assert metadata == {
        "contract": "token_shards@1",
        "vocab_size": "600",
        "tokenizer_sha256": built.tokenizer.sha256,
        "split": "train",
    }
    assert path.stat().st_mode & 0o777 == 0o644


def test_compression_counts_validation_documents(built: Any) -> None:
    rows = {
        row["language"]: row
        for row in pq.ParquetFile(built.outputs["tokenizer"] / "compression.parquet").read().to_pylist()
    }
    assert set(rows) == {"all", "ar", "en", "other", "zh"}
    chinese = [
        row
        for row in read_rows(built.inputs["documents"])
        if row["language"] == "zh" and row["split"] == "validation"
    ]
    assert rows["zh"]["num_bytes"] == sum(len(row["text"].encode()) for row in chinese)
    assert rows["zh"]["num_tokens"] == sum(len(built.tokenizer.encode(row["text"])) for row in chinese)
    assert rows["all"]["num_tokens"] == sum(row["num_tokens"] for name, row in rows.items() if name != "all")
    assert 0 < rows["zh"]["byte_fallback_fraction"] < 1


def test_the_readable_vocabulary_has_one_line_per_id(built: Any) -> None:
    header, *lines = (built.outputs["tokenizer"] / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert header == "id\tkind\tpiece\tscore"
    assert [int(line.split("\t")[0]) for line in lines] == list(range(600))
    assert "5\tcontrol\t'<|im_end|>'\t0" in lines


def test_the_stage_reports_table_chart_and_progress(built: Any) -> None:
    kinds = {event["event"] for event in built.events}
    assert {"table", "chart", "progress", "log"} <= kinds
    last = [event for event in built.events if event["event"] == "progress"][-1]
    assert last["done"] == last["total"] == len(list(read_rows(built.inputs["documents"])))


def test_the_report_says_how_documents_pack(built: Any) -> None:
    table = next(e for e in built.events if e["event"] == "table" and e["name"] == "packing")
    lengths = np.diff(TokenShards(built.outputs["tokens"], "train").doc_offsets)
    assert [row[0] for row in table["rows"]] == [512, 2048, 8192]
    for context_tokens, rows, padding, in_cut, _ in table["rows"]:
        continued = np.maximum(0, -(-(lengths - context_tokens) // (context_tokens - 1))).sum()
        used = lengths.sum() + continued
        assert padding == pytest.approx(100 * (1 - used / (rows * context_tokens)), abs=0.001)
        share = lengths[lengths > context_tokens].sum() / lengths.sum()
        assert in_cut == pytest.approx(100 * share, abs=0.001)


def test_the_same_input_gives_the_same_bytes(built: Any, run_tokenizer: Callable[..., Any]) -> None:
    again = run_tokenizer()
    for part, folder in built.outputs.items():
        for path in folder.iterdir():
            assert file_sha256(path) == file_sha256(again.outputs[part] / path.name), path.name


def test_a_vocabulary_that_is_too_big_names_the_largest_that_works(run_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="too small for vocab_size = 60000") as caught:
        run_tokenizer(vocab_size=60_000)
    largest = int(caught.value.hint.split("vocab_size = ")[1].split()[0])
    assert run_tokenizer(vocab_size=largest).tokenizer.vocab_size == largest
    with pytest.raises(UserError, match=f"too small for vocab_size = {largest + 1}"):
        run_tokenizer(vocab_size=largest + 1)


def test_the_smallest_vocabulary_still_loses_nothing(run_tokenizer: Callable[..., Any]) -> None:
    small = run_tokenizer(vocab_size=400)
    for row in read_rows(small.inputs["documents"]):
        assert small.tokenizer.decode(small.tokenizer.encode(row["text"])) == row["text"]


def test_an_empty_split_is_the_users_to_mend(built: Any, run_tokenizer: Callable[..., Any]) -> None:
    rows = [row for row in read_rows(built.inputs["documents"]) if row["split"] == "train"]
    with pytest.raises(UserError, match=r"none of the \d+ documents is in the validation split"):
        run_tokenizer(documents=rows)


def test_memory_bounds_the_sample(run_tokenizer: Callable[..., Any]) -> None:
    config = TokenizerConfig(sample_megabytes=500, memory_megabytes=1900)
    assert config.sample_bytes == 100_000_000
    assert TokenizerConfig(sample_megabytes=5, memory_megabytes=1900).sample_bytes == 5_000_000
    for wrong in ({"memory_megabytes": 200}, {"model_type": "unigram"}, {"user_defined_symbols": ("a b",)}):
        with pytest.raises(
            ValueError, match=r"memory_megabytes must be|needs word_scheme|cannot be one token"
        ):
            TokenizerConfig(**wrong)


def test_an_extended_model_and_its_base_are_in_the_bundle(
    built: Any, run_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [row for row in read_rows(built.inputs["documents"]) if row["language"] == "en"]
    english = run_tokenizer(documents=rows, vocab_size=450, word_scheme="compact")
    model = english.outputs["tokenizer"] / "tokenizer.model"
    grown = run_tokenizer(vocab_size=480, extend=str(model), character_coverage=1.0)
    base = Tokenizer((grown.outputs["tokenizer"] / "base.model").read_bytes())
    assert (base.vocab_size, grown.tokenizer.vocab_size) == (450, 480)
    assert [base.piece(i) for i in range(450)] == [grown.tokenizer.piece(i) for i in range(450)]
    assert grown.metrics["dead_pieces"] == 0
    spelled = read_token_bytes(grown.outputs["tokenizer"] / "tokenizer.json")
    for i, token in enumerate(spelled):
        special = grown.tokenizer.is_special(i)
        assert token == (grown.tokenizer.piece(i).encode() if special else grown.tokenizer.token_bytes(i))
    for row in rows:
        assert grown.tokenizer.encode(row["text"]) == base.encode(row["text"])


KILLED = """
    import io, sys, time
    from pathlib import Path
    from stages.runtime.events import EventLog
    from stages.runtime.session import StageSession
    from stages.tokenizer import run as stage
    from stages.tokenizer.spec import TokenizerConfig

    root, *inputs = map(Path, sys.argv[1:])
    outputs = {part: root / part for part in ("tokenizer", "tokens")}
    for folder in outputs.values():
        folder.mkdir()
    stage.write_shards = lambda *arguments: time.sleep(600)
    log = EventLog(root / "work" / "events.jsonl", as_json=False, stream=io.StringIO())
    named = dict(zip(("documents", "conversations"), inputs))
    stage.run(TokenizerConfig(vocab_size=600), named, outputs, StageSession("tokenizer", root / "work", log))
"""


def test_after_kill_9_nothing_is_learned_again(
    built: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [str(built.inputs[role]) for role in ("documents", "conversations")]
    killed = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), *inputs],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    work = tmp_path / "work"
    while not list(work.glob("checkpoints/learned-*.model")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    monkeypatch.setattr(stage, "train_sentencepiece", lambda *_, **__: pytest.fail("it learned again"))
    outputs = {part: tmp_path / part for part in built.outputs}
    session = StageSession("tokenizer", work, EventLog(work / "log", as_json=False, stream=io.StringIO()))
    stage.run(TokenizerConfig(vocab_size=600), built.inputs, outputs, session)
    for part, folder in built.outputs.items():
        for path in folder.iterdir():
            assert file_sha256(path) == file_sha256(outputs[part] / path.name), path.name
    with pytest.raises(pytest.fail.Exception, match="it learned again"):
        stage.run(TokenizerConfig(vocab_size=601), built.inputs, outputs, session)


def test_files_outside_count_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(b"1")
    (tmp_path / "b.model").write_bytes(b"1")
    digests = [SPEC.external_inputs(TokenizerConfig(extend=str(tmp_path / f"{n}.model"))) for n in "ab"]
    assert digests[0] == digests[1] != {}
    (tmp_path / "b.model").write_bytes(b"2")
    assert SPEC.external_inputs(TokenizerConfig(extend=str(tmp_path / "b.model"))) != digests[0]
    assert SPEC.external_inputs(TokenizerConfig()) == {}
    with pytest.raises(UserError, match="there is no file"):
        SPEC.external_inputs(TokenizerConfig(import_from=str(tmp_path / "none.json")))
