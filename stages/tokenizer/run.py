"""The tokenizer stage: learn, extend or import a vocabulary, write it in three forms, encode documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.tokenizer.alphabet import Coverage
from stages.tokenizer.bundle import (
    report_compression,
    report_quality,
    total_count,
    write_bundle,
    write_imported_bundle,
)
from stages.tokenizer.extension import extend_model
from stages.tokenizer.importing import import_tokenizer
from stages.tokenizer.learned import learned_once, learning_key
from stages.tokenizer.packing_report import report_packing
from stages.tokenizer.quality import idle_pieces, measure_quality, quality_rows
from stages.tokenizer.sample import Sample, choose_conversations, choose_documents, count_splits
from stages.tokenizer.sentencepiece_file import without_dummy_prefix
from stages.tokenizer.shards import ShardSettings, write_shards
from stages.tokenizer.spec import TokenizerConfig, external_files
from stages.tokenizer.training import NUM_FIXED_PIECES, Recipe, train_sentencepiece
from stages.whitebox.chat_format import conversation_text, messages_from_columns, tools_from_column
from stages.whitebox.tokenizer import Tokenizer


def run(
    config: TokenizerConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Make the vocabulary and encode the corpus; returns bytes per token and its kin."""
    _check_splits(count_splits(inputs["documents"]))
    tokenizer = _make_tokenizer(config, inputs, outputs["tokenizer"], session)
    settings = ShardSettings(config.shard_tokens, config.shuffle_seed, config.num_threads)
    written = write_shards(inputs["documents"], tokenizer, outputs["tokens"], session, settings)
    report_packing(outputs["tokens"], session)
    report_compression(written.languages, outputs["tokenizer"], session)
    idle = idle_pieces(tokenizer, written.usage)
    quality = measure_quality(inputs["documents"], tokenizer)
    report_quality(quality_rows(quality), idle, outputs["tokenizer"], session)
    total = total_count(written.languages)
    return {
        "vocab_size": tokenizer.vocab_size,
        "train_tokens": written.num_tokens["train"],
        "validation_tokens": written.num_tokens["validation"],
        "bytes_per_token": total.num_bytes / total.num_tokens,
        "byte_fallback_fraction": total.num_byte_tokens / total.num_tokens,
        "unused_pieces": int((written.usage[NUM_FIXED_PIECES:] == 0).sum()),
        "glitch_pieces": sum(piece["kind"] == "glitch" for piece in idle),
        "dead_pieces": sum(piece["kind"] == "dead" for piece in idle),
    }


def _make_tokenizer(
    config: TokenizerConfig, inputs: Mapping[str, Path], folder: Path, session: StageSession
) -> Tokenizer:
    files = external_files(config)
    if config.import_from:
        imported = import_tokenizer(files)
        for warning in imported.warnings:
            session.warn(warning)
        write_imported_bundle(imported.tokenizer, imported.document, imported.roles, folder)
        session.log(f"imported {imported.tokenizer.vocab_size:,} pieces from {config.import_from}")
        return Tokenizer.from_folder(folder)
    tokenizer = Tokenizer(_learn(config, inputs, files, folder, session))
    write_bundle(tokenizer, folder)
    session.log(f"learned {tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256[:12]}")
    return tokenizer


def _learn(
    config: TokenizerConfig,
    inputs: Mapping[str, Path],
    files: Mapping[str, Path],
    folder: Path,
    session: StageSession,
) -> bytes:
    """The model file; beside an extended one the base's, for who starts from its weights."""
    texts = _draw_sample(config, inputs, session)
    coverage = Coverage(config.character_coverage, config.coverage_of_script)
    base = files["extend"].read_bytes() if config.extend else b""

    def learn() -> bytes:
        if base:
            return extend_model(base, texts, config.vocab_size, config.extend_scripts, coverage)
        recipe = Recipe(coverage, config.model_type, config.word_scheme, config.user_defined_symbols)
        return train_sentencepiece(texts, config.vocab_size, recipe=recipe)

    model = learned_once(learn, learning_key(config, texts, base), session)
    if base:
        (folder / "base.model").write_bytes(without_dummy_prefix(base))
    return model


def _check_splits(splits: Counter[str]) -> None:
    for split in ("train", "validation"):
        if not splits[split]:
            raise UserError(
                f"none of the {splits.total():,} documents is in the {split} split",
                hint="give corpus_prep more text, or change [corpus_prep] validation_fraction",
            )


def _draw_sample(config: TokenizerConfig, inputs: Mapping[str, Path], session: StageSession) -> Sample:
    budget = config.sample_bytes
    for_conversations = int(budget * config.conversation_fraction)
    documents, conversations = inputs["documents"], inputs["conversations"]
    chosen = choose_documents(documents, budget - for_conversations, config.max_document_bytes)
    drawn = choose_conversations(conversations, for_conversations, _as_text)
    sample = Sample(documents, chosen, conversations, drawn, _as_text)
    megabytes = sum(len(text.encode()) for text in sample) / 1e6
    session.log(
        f"learning {config.vocab_size:,} pieces from {megabytes:.1f} MB: {len(chosen):,} documents and "
        f"{len(drawn):,} conversations"
    )
    return sample


def _as_text(row: Mapping[str, Any]) -> str:
    return conversation_text(messages_from_columns(row["messages"]), tools_from_column(row["tools"]))
