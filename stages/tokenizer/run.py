"""The tokenizer stage: draw a sample, learn a vocabulary, write it in three forms, encode every document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.tables import read_part
from data_contracts.tokenizer_bundle import COMPRESSION_SCHEMA
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.tokenizer.hugging_face import special_tokens_map, tokenizer_config, tokenizer_json
from stages.tokenizer.packing_report import report_packing
from stages.tokenizer.sample import (
    choose_conversations,
    choose_documents,
    sampled_conversations,
    sampled_documents,
)
from stages.tokenizer.shard_units import LanguageCount
from stages.tokenizer.shards import ShardSettings, write_shards
from stages.tokenizer.spec import TokenizerConfig
from stages.tokenizer.training import NUM_FIXED_PIECES, train_sentencepiece
from stages.whitebox.chat_format import CHAT_TEMPLATE, conversation_text, messages_from_columns
from stages.whitebox.tokenizer import Tokenizer


def run(
    config: TokenizerConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Learn the vocabulary and encode the corpus; returns bytes per token and its kin."""
    splits = read_part(inputs["documents"], ["split"]).column("split").to_pylist()
    _check_splits(splits)
    texts = _draw_sample(config, inputs, session)
    tokenizer = Tokenizer(train_sentencepiece(texts, config.vocab_size, config.character_coverage))
    _write_tokenizer(tokenizer, outputs["tokenizer"])
    session.log(f"learned {tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256[:12]}")
    settings = ShardSettings(config.shard_tokens, config.shuffle_seed, config.num_threads)
    written = write_shards(inputs["documents"], tokenizer, outputs["tokens"], session, settings)
    report_packing(outputs["tokens"], session)
    _report_compression(written.languages, outputs["tokenizer"] / "compression.parquet", session)
    total = _total(written.languages)
    return {
        "vocab_size": tokenizer.vocab_size,
        "train_tokens": written.num_tokens["train"],
        "validation_tokens": written.num_tokens["validation"],
        "bytes_per_token": total.num_bytes / total.num_tokens,
        "byte_fallback_fraction": total.num_byte_tokens / total.num_tokens,
        "unused_pieces": int((written.usage[NUM_FIXED_PIECES:] == 0).sum()),
    }


def _check_splits(splits: list[str]) -> None:
    for split in ("train", "validation"):
        if split not in splits:
            raise UserError(
                f"none of the {len(splits)} documents is in the {split} split",
                hint="give corpus_prep more text, or change [corpus_prep] validation_fraction",
            )


def _draw_sample(config: TokenizerConfig, inputs: Mapping[str, Path], session: StageSession) -> list[str]:
    budget = int(config.sample_megabytes * 1e6)
    for_conversations = int(budget * config.conversation_fraction)
    chosen = choose_documents(inputs["documents"], budget - for_conversations, config.max_document_bytes)
    texts = list(sampled_documents(inputs["documents"], chosen))
    drawn = choose_conversations(inputs["conversations"], for_conversations, _as_text)
    texts += sampled_conversations(inputs["conversations"], drawn, _as_text)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    session.log(
        f"learning {config.vocab_size:,} pieces from {megabytes:.1f} MB: {len(chosen):,} documents and "
        f"{len(drawn):,} conversations"
    )
    return texts


def _as_text(rows: Any) -> str:
    return conversation_text(messages_from_columns(rows))


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(tokenizer.model_proto)
    (folder / "tokenizer.vocab").write_text(readable_vocabulary(tokenizer), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    documents = {
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config(),
        "special_tokens_map.json": special_tokens_map(),
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def readable_vocabulary(tokenizer: Tokenizer) -> str:
    """One line per id: id, kind, the piece as a Python string, score. For people; nothing reads it back."""
    lines = ["id\tkind\tpiece\tscore"]
    for i in range(tokenizer.vocab_size):
        kind = "control" if tokenizer.is_special(i) else "byte" if tokenizer.is_byte(i) else "text"
        lines.append(f"{i}\t{kind}\t{tokenizer.piece(i)!r}\t{tokenizer.score(i):g}")
    return "\n".join(lines) + "\n"


def _report_compression(languages: Mapping[str, LanguageCount], path: Path, session: StageSession) -> None:
    rows = [
        {
            "language": language,
            "num_documents": count.num_documents,
            "num_bytes": count.num_bytes,
            "num_tokens": count.num_tokens,
            "bytes_per_token": count.num_bytes / max(1, count.num_tokens),
            "byte_fallback_fraction": count.num_byte_tokens / max(1, count.num_tokens),
        }
        for language, count in sorted([*languages.items(), ("all", _total(languages))])
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=COMPRESSION_SCHEMA), path, compression="zstd")
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


def _total(languages: Mapping[str, LanguageCount]) -> LanguageCount:
    total = LanguageCount()
    for count in languages.values():
        total.add(count)
    return total
