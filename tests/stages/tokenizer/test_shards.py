"""Shards hold every document once and whole, in an order that nothing but seed and ids decide."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from data_contracts import DOCUMENTS, TOKEN_SHARDS
from data_contracts.tables import write_part
from stages.runtime.errors import StopRequested
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.tokenizer import document_encoder, shard_units, shards
from stages.tokenizer.shard_files import plan_shards
from stages.tokenizer.shards import ShardSettings, write_shards
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.batches import TokenShards
from stages.whitebox.tokenizer import Tokenizer

NUM_DOCUMENTS = 3000
Documents = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> Tokenizer:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    return Tokenizer(train_sentencepiece([text], 600, 0.9995))


@pytest.fixture(scope="module")
def rows(repository: Path) -> Documents:
    """Documents of 0 to 400 characters, one in ten for validation, one very long."""
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    draw = np.random.default_rng(0)
    sizes = [*draw.integers(0, 400, NUM_DOCUMENTS - 1).tolist(), 60_000]
    made = []
    for number, size in enumerate(sizes):
        start = int(draw.integers(0, len(text)))
        content = (text * 40)[start : start + size]
        made.append(
            {"doc_id": f"d{number}", "source": "fixture", "title": "", "kind": "text", "text": content}
            | {"language": "en" if number % 3 else "zh", "split": "train" if number % 10 else "validation"}
            | {"num_bytes": len(content.encode())}
        )
    return made


@pytest.fixture(scope="module")
def documents(rows: Documents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part, in row groups of 100 documents."""
    folder = tmp_path_factory.mktemp("documents")
    table = pa.Table.from_pylist(rows, schema=DOCUMENTS.schema)
    pq.write_table(table.slice(0, 2000), folder / "part-00000.parquet", row_group_size=100)
    pq.write_table(table.slice(2000), folder / "part-00001.parquet", row_group_size=100)
    return folder


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thirty units, so that there is something to interrupt."""
    monkeypatch.setattr(shard_units, "UNIT_BYTES", 16_000)


def session(folder: Path) -> StageSession:
    log = EventLog(folder / "events.jsonl", as_json=False, stream=io.StringIO())
    return StageSession("tokenizer", folder, log)


def write(
    documents: Path, tokenizer: Tokenizer, root: Path, **settings: Any
) -> tuple[dict[str, bytes], shards.ShardCounts]:
    """The shards' bytes by name, and the counts."""
    (root / "tokens").mkdir(parents=True, exist_ok=True)
    fields = ShardSettings(**{"shard_tokens": 20_000, **settings})
    counts = write_shards(documents, tokenizer, root / "tokens", session(root / "work"), fields)
    return {path.name: path.read_bytes() for path in sorted((root / "tokens").iterdir())}, counts


def test_every_document_once_whole_and_in_order_of_its_hash(
    documents: Path, rows: Documents, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files, counts = write(documents, tokenizer, tmp_path)
    assert TOKEN_SHARDS.check(tmp_path / "tokens") == []
    assert len(files) == len(counts.shards) > 5
    for split in ("train", "validation"):
        mine = sorted(
            (row for row in rows if row["split"] == split),
            key=lambda row: shard_units.shuffle_key(row["doc_id"], 0),
        )
        found = TokenShards(tmp_path / "tokens", split)
        assert found.num_bytes.tolist() == [row["num_bytes"] for row in mine]
        assert [found.document(i).tolist() for i in range(len(mine))] == [
            [tokenizer.bos_id, *tokenizer.encode(row["text"]), tokenizer.eos_id] for row in mine
        ]
        assert counts.num_tokens[split] == found.num_tokens


def test_counts_are_those_of_the_texts(
    documents: Path, rows: Documents, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, counts = write(documents, tokenizer, tmp_path)
    ids = [i for row in rows for i in tokenizer.encode(row["text"])]
    assert counts.usage.tolist() == np.bincount(ids, minlength=600).tolist()
    held_out = [row for row in rows if row["split"] == "validation" and row["language"] == "zh"]
    spelled = [tokenizer.encode(row["text"]) for row in held_out]
    assert counts.languages["zh"] == shard_units.LanguageCount(
        num_documents=len(held_out),
        num_bytes=sum(row["num_bytes"] for row in held_out),
        num_tokens=sum(len(ids) for ids in spelled),
        num_byte_tokens=sum(tokenizer.is_byte(i) for ids in spelled for i in ids),
    )


def test_shards_keep_to_their_size(documents: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    files, counts = write(documents, tokenizer, tmp_path)
    long = max(len(load_file(tmp_path / "tokens" / name)["tokens"]) for name in files)
    assert long == max(shard.num_tokens for shard in counts.shards)
    most = sorted(shard.num_tokens for shard in counts.shards if shard.split == "train")
    assert all(tokens <= 20_000 for tokens in most[:-1])
    assert most[-1] > 20_000  # the one with the long document, which is not cut


@pytest.mark.parametrize("change", ["threads", "kernels", "units", "file order"])
def test_the_bytes_depend_on_nothing_else(
    change: str,
    documents: Path,
    rows: Documents,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, _ = write(documents, tokenizer, tmp_path / "first")
    if change == "kernels":
        monkeypatch.setattr(document_encoder, "KERNELS_FROM_BYTES", 0)
    if change == "units":
        monkeypatch.setattr(shard_units, "UNIT_BYTES", 10**9)
    if change == "file order":
        documents = tmp_path / "reversed"
        write_part(documents, DOCUMENTS, rows[::-1])
    again, _ = write(documents, tokenizer, tmp_path / "again", num_threads=2 if change == "threads" else 1)
    assert first == again


def test_another_seed_gives_another_order(documents: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, _ = write(documents, tokenizer, tmp_path / "first", shard_tokens=10**6)
    again, _ = write(documents, tokenizer, tmp_path / "again", shard_tokens=10**6, shuffle_seed=1)
    name = "train-00000.safetensors"
    assert first[name] != again[name]
    assert len(first[name]) == len(again[name])


KILLED = """
    import io, sys, time
    from pathlib import Path
    from stages.runtime.events import EventLog
    from stages.runtime.session import StageSession
    from stages.tokenizer import shard_units, shards
    from stages.whitebox.tokenizer import Tokenizer

    documents, model, root = map(Path, sys.argv[1:])
    shard_units.UNIT_BYTES = 16_000
    encode = shards.encode_unit
    def slowly(*arguments):
        encode(*arguments)
        time.sleep(0.1)
    shards.encode_unit = slowly
    (root / "tokens").mkdir(parents=True)
    log = EventLog(root / "work" / "events.jsonl", as_json=False, stream=io.StringIO())
    session = StageSession("tokenizer", root / "work", log)
    settings = shards.ShardSettings(shard_tokens=20_000)
    shards.write_shards(documents, Tokenizer(model.read_bytes()), root / "tokens", session, settings)
"""


def test_after_kill_9_it_goes_on_and_gives_the_same_bytes(
    documents: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _ = write(documents, tokenizer, tmp_path / "whole")
    (tmp_path / "model").write_bytes(tokenizer.model_proto)
    arguments = [str(documents), str(tmp_path / "model"), str(tmp_path / "killed")]
    killed = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    scratch = tmp_path / "killed/work/checkpoints/shards"
    while len(list(scratch.glob("*.npz"))) < 5 and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = len(list(scratch.glob("*.npz")))
    assert 5 <= kept < len(shard_units.list_units(documents))
    encoded = count_calls(monkeypatch, "encode_unit")
    again, _ = write(documents, tokenizer, tmp_path / "killed")
    assert len(encoded) == len(shard_units.list_units(documents)) - kept
    assert again == whole


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[None]:
    """Gets longer with each call of that function of `shards`."""
    calls: list[None] = []
    real: Callable[..., None] = getattr(shards, name)

    def counted(*arguments: Any) -> None:
        calls.append(None)
        real(*arguments)

    monkeypatch.setattr(shards, name, counted)
    return calls


def test_a_failure_between_shards_loses_neither_units_nor_shards(
    documents: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, counts = write(documents, tokenizer, tmp_path / "whole")
    written: list[str] = []

    def fail_at_third(shard: Any, *arguments: Any) -> None:
        if len(written) == 2:
            raise OSError("no space left on device")
        written.append(shard.name)
        real(shard, *arguments)

    real = shards.write_shard
    monkeypatch.setattr(shards, "write_shard", fail_at_third)
    with pytest.raises(OSError, match="no space"):
        write(documents, tokenizer, tmp_path / "again")
    monkeypatch.setattr(shards, "write_shard", real)
    encoded, shard_calls = count_calls(monkeypatch, "encode_unit"), count_calls(monkeypatch, "write_shard")
    assert write(documents, tokenizer, tmp_path / "again")[0] == whole
    assert (len(encoded), len(shard_calls)) == (0, len(counts.shards) - 2)


def test_units_of_another_tokenizer_are_not_used(
    documents: Path, tokenizer: Tokenizer, repository: Path, tmp_path: Path
) -> None:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    other = Tokenizer(train_sentencepiece([text], 500, 0.9995))
    write(documents, other, tmp_path / "work")
    again, _ = write(documents, tokenizer, tmp_path / "work")
    assert again["train-00000.safetensors"] == write(documents, tokenizer, tmp_path / "first")[0].get(
        "train-00000.safetensors"
    )


def test_who_asks_to_stop_is_heard(
    documents: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(StageSession, "should_stop", lambda _: next(answers, True))
    with pytest.raises(StopRequested):
        write(documents, tokenizer, tmp_path)


def test_a_shard_is_whole_buckets() -> None:
    tokens = np.array([5, 5, 5, 40, 1, 0, 3, 3])
    planned = plan_shards(tokens, {"train": 6, "validation": 2}, 10)
    assert [(s.name, s.first_bucket, s.stop_bucket, s.num_tokens) for s in planned] == [
        ("train-00000.safetensors", 0, 2, 10),
        ("train-00001.safetensors", 2, 3, 5),
        ("train-00002.safetensors", 3, 4, 40),
        ("train-00003.safetensors", 4, 6, 1),
        ("validation-00000.safetensors", 6, 8, 6),
    ]


def test_buckets_follow_the_keys() -> None:
    keys = np.array([0, 2**62, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert shard_units.bucket_of(keys, 2).tolist() == [0, 0, 0, 1, 1]
    assert shard_units.bucket_of(keys, 1).tolist() == [0] * 5
    draw = np.sort(np.random.default_rng(0).integers(0, 2**64 - 1, 10_000, dtype=np.uint64))
    buckets = shard_units.bucket_of(draw, 1000)
    assert (np.diff(buckets) >= 0).all() and buckets.min() == 0 and buckets.max() == 999
