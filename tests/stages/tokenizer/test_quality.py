"""The quality report against plain loops, and pieces that are idle on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_contracts.tables import read_rows
from stages.tokenizer.published import PUBLISHED
from stages.tokenizer.quality import count_words_of, idle_pieces, measure_quality
from stages.tokenizer.sentencepiece_file import Piece, read_pieces, replace_pieces
from stages.whitebox.batches import TokenShards
from stages.whitebox.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("text", "words"),
    [("The lamp's lit.", 4), ("", 0), ("灯塔看守人", 5), ("用Python写", 3), ("x_1 = 20", 2), ("ゔァ 한국", 4),
     ("naïve Ünïcode", 2), ("…！？", 0)],
)  # fmt: skip
def test_words_are_runs_of_letters_or_single_characters(text: str, words: int) -> None:
    assert count_words_of(text) == words


def test_the_report_is_what_a_plain_loop_counts(built: Any) -> None:
    tokenizer = built.tokenizer
    table = pq.ParquetFile(built.outputs["tokenizer"] / "quality.parquet").read().to_pylist()
    rows = {(row["language"], row["source"]): row for row in table}
    held_out = [row for row in read_rows(built.inputs["documents"]) if row["split"] == "validation"]
    for language in {row["language"] for row in held_out}:
        texts = [row["text"] for row in held_out if row["language"] == language]
        ids = [i for text in texts for i in tokenizer.encode(text)]
        row = rows[language, "fixture"]
        assert row == rows[language, "all"] | {"source": "fixture"}
        assert row["num_documents"] == len(texts)
        assert row["bytes_per_token"] == pytest.approx(sum(len(t.encode()) for t in texts) / len(ids))
        assert row["tokens_per_word"] == pytest.approx(len(ids) / sum(map(count_words_of, texts)))
        assert row["num_byte_tokens"] == sum(tokenizer.is_byte(i) for i in ids)
    total = rows["all", "all"]
    for column in ("num_documents", "num_bytes", "num_words", "num_tokens", "num_byte_tokens"):
        assert total[column] == sum(row[column] for key, row in rows.items() if key[1] != "all")


def test_a_stratum_is_sampled_and_not_read_to_its_end(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.tokenizer.quality.MAX_BYTES_PER_STRATUM", 1)
    found = measure_quality(built.inputs["documents"], built.tokenizer)
    assert {quality.num_documents for quality in found.values()} == {1}


def test_idle_pieces_are_those_that_no_document_has(built: Any) -> None:
    tokenizer = built.tokenizer
    shards = [TokenShards(built.outputs["tokens"], split) for split in ("train", "validation")]
    used = {i for shard in shards for i in shard.read(0, shard.num_tokens).tolist()}
    learned = [
        i for i in range(tokenizer.vocab_size) if not (tokenizer.is_special(i) or tokenizer.is_byte(i))
    ]
    rows = pq.ParquetFile(built.outputs["tokenizer"] / "idle_pieces.parquet").read().to_pylist()
    assert [row["id"] for row in rows] == [i for i in learned if i not in used]
    assert built.metrics["glitch_pieces"] == len(rows)
    assert built.metrics["dead_pieces"] == 0


def test_dead_pieces_are_found(built: Any) -> None:
    """ "xqz" can only be made of "xq" or "qz", and there is neither."""
    model = built.tokenizer.model_proto
    tokenizer = Tokenizer(replace_pieces(model, [*read_pieces(model), Piece("xqz", -9999.0)]))
    idle = idle_pieces(tokenizer, [1] * tokenizer.vocab_size)
    assert idle == [{"id": 600, "piece": "xqz", "kind": "dead"}]


def test_events_show_the_report(built: Any) -> None:
    tables = {event["name"]: event for event in built.events if event["event"] == "table"}
    charts = {event["name"] for event in built.events if event["event"] == "chart"}
    assert {"bytes_per_token by source", "tokens_per_word by source"} <= charts
    assert len(tables["tokenizer quality"]["rows"]) == 9
    published = tables["published tokenizers"]["rows"]
    assert [row[0] for row in published[:2]] == ["this vocabulary"] * 2
    assert len(published) == 2 + len(PUBLISHED)


def test_the_vocabulary_can_be_read(built: Any) -> None:
    folder: Path = built.outputs["tokenizer"]
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id\tkind\tpiece\tscore"
    assert len(lines) == 601
