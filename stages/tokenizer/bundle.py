"""The files of the tokenizer bundle, and the tables and charts about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.tokenizer_bundle import COMPRESSION_SCHEMA, IDLE_SCHEMA, QUALITY_SCHEMA
from stages.runtime.session import StageSession
from stages.tokenizer.hugging_face import roles, special_tokens_map, tokenizer_config, tokenizer_json
from stages.tokenizer.published import PUBLISHED
from stages.tokenizer.quality import ALL
from stages.tokenizer.shard_units import LanguageCount
from stages.whitebox.chat_format import CHAT_TEMPLATE
from stages.whitebox.tokenizer import Tokenizer

SHOWN_IDLE_PIECES = 50


def write_bundle(tokenizer: Tokenizer, folder: Path) -> None:
    """A SentencePiece vocabulary in three forms."""
    (folder / "tokenizer.model").write_bytes(tokenizer.model_proto)
    _write_shared(tokenizer, roles(tokenizer), tokenizer_json(tokenizer), folder)


def write_imported_bundle(
    tokenizer: Tokenizer, document: Mapping[str, Any], names: Mapping[str, str], folder: Path
) -> None:
    """An imported vocabulary: its tokenizer.json is the truth, and there is no tokenizer.model."""
    _write_shared(tokenizer, names, document, folder)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _write_shared(
    tokenizer: Tokenizer, names: Mapping[str, str], document: Mapping[str, Any], folder: Path
) -> None:
    (folder / "vocab.txt").write_text(readable_vocabulary(tokenizer), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    documents = {
        "tokenizer.json": document,
        "tokenizer_config.json": tokenizer_config(names),
        "special_tokens_map.json": special_tokens_map(names),
    }
    for name, content in documents.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def readable_vocabulary(tokenizer: Tokenizer) -> str:
    """One line per id: id, kind, the piece as a Python string, score. For people; nothing reads it back."""
    lines = ["id\tkind\tpiece\tscore"]
    for i in range(tokenizer.vocab_size):
        kind = "control" if tokenizer.is_special(i) else "byte" if tokenizer.is_byte(i) else "text"
        lines.append(f"{i}\t{kind}\t{tokenizer.piece(i)!r}\t{tokenizer.score(i):g}")
    return "\n".join(lines) + "\n"


def report_compression(languages: Mapping[str, LanguageCount], folder: Path, session: StageSession) -> None:
    """compression.parquet, and the same as a table and a chart."""
    rows = [
        {
            "language": language,
            "num_documents": count.num_documents,
            "num_bytes": count.num_bytes,
            "num_tokens": count.num_tokens,
            "bytes_per_token": count.num_bytes / max(1, count.num_tokens),
            "byte_fallback_fraction": count.num_byte_tokens / max(1, count.num_tokens),
        }
        for language, count in sorted([*languages.items(), (ALL, total_count(languages))])
    ]
    _write_table(rows, COMPRESSION_SCHEMA, folder / "compression.parquet")
    caption = "validation documents, which the vocabulary was not learned from"
    shown = [[round(v, 3) if isinstance(v, float) else v for v in row.values()] for row in rows]
    session.table("compression", COMPRESSION_SCHEMA.names, shown, caption=caption)
    session.chart(
        "bytes_per_token",
        title="Bytes of text per token",
        x_label="language",
        y_label="bytes per token",
        series={"validation": [[row["language"], round(row["bytes_per_token"], 3)] for row in rows]},
        kind="bar",
    )


def total_count(languages: Mapping[str, LanguageCount]) -> LanguageCount:
    """The languages together."""
    total = LanguageCount()
    for count in languages.values():
        total.add(count)
    return total


def report_quality(
    rows: Sequence[Mapping[str, Any]], idle: Sequence[Mapping[str, Any]], folder: Path, session: StageSession
) -> None:
    """quality.parquet and idle_pieces.parquet, and the same as tables and charts."""
    _write_table(rows, QUALITY_SCHEMA, folder / "quality.parquet")
    _write_table(idle, IDLE_SCHEMA, folder / "idle_pieces.parquet")
    caption = "validation documents, which the vocabulary was not learned from; words: see the stage's README"
    shown = [[round(v, 3) if isinstance(v, float) else v for v in row.values()] for row in rows]
    session.table("tokenizer quality", QUALITY_SCHEMA.names, shown, caption=caption)
    _report_published(rows, session)
    for measure, title in (
        ("bytes_per_token", "Bytes of text per token, by source"),
        ("tokens_per_word", "Tokens per word, by source"),
        ("byte_fallback_fraction", "Share of tokens that are single bytes, by source"),
    ):
        points = [[f"{row['language']} {row['source']}", round(row[measure], 3)] for row in rows]
        session.chart(
            f"{measure} by source",
            title=title,
            x_label="language and source",
            y_label=measure.replace("_", " "),
            series={"validation": points},
            kind="bar",
        )
    if idle:
        first = [[row["id"], repr(row["piece"]), row["kind"]] for row in idle[:SHOWN_IDLE_PIECES]]
        caption = f"{len(idle):,} pieces that no document is made of; the first {len(first)}"
        session.table("idle pieces", IDLE_SCHEMA.names, first, caption=caption)


def _report_published(rows: Sequence[Mapping[str, Any]], session: StageSession) -> None:
    ours = [
        ["this vocabulary", "", row["language"], round(row["bytes_per_token"], 3), "validation documents"]
        for row in rows
        if row["source"] == ALL and row["language"] in {known.language for known in PUBLISHED}
    ]
    if ours:
        columns = ["tokenizer", "vocab_size", "language", "bytes_per_token", "text and source"]
        caption = "what others state, on other text: it tells the order, no more"
        stated = [list(known) for known in PUBLISHED if known.language in {row[2] for row in ours}]
        session.table("published tokenizers", columns, [*ours, *stated], caption=caption)


def _write_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path, compression="zstd")
