"""What an epoch reads: conversations by their weight, documents against forgetting, packed into rows."""

from __future__ import annotations

from pathlib import Path

from stages.runtime.session import StageSession
from stages.sft.conversations import Chats, count_tokens, repeat_by_kind, replayed_documents
from stages.sft.spec import SftConfig
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import RenderedChat
from stages.whitebox.packing import PackedRows, pack
from stages.whitebox.tokenizer import Tokenizer


def training_rows(
    config: SftConfig,
    tokens: Path,
    chats: Chats,
    context_tokens: int,
    tokenizer: Tokenizer,
    session: StageSession,
) -> PackedRows:
    """The rows of the training split; says what was packed, cut and left out."""
    training = repeat_by_kind(chats, config.kind_weights)
    training += _replay(config, tokens, training, context_tokens, session)
    rows = _packed("training", training, context_tokens, tokenizer)
    _say_what_was_packed(rows, training, session)
    return rows


def held_out_rows(config: SftConfig, chats: Chats, context_tokens: int, tokenizer: Tokenizer) -> PackedRows:
    """The rows that are judged: the first conversations of the validation split."""
    chosen = chats.head(config.validation_conversations).rendered
    return _packed("held-out", chosen, context_tokens, tokenizer)


def _packed(split: str, chats: list[RenderedChat], context_tokens: int, tokenizer: Tokenizer) -> PackedRows:
    try:
        return pack(chats, context_tokens, tokenizer.pad_id)
    except ValueError as error:
        raise ValueError(
            f"{split} conversations: {error}; set [sft] context_tokens higher if their prompts fill a row, "
            "and look at them: glassworks show corpus_prep"
        ) from error


def _replay(
    config: SftConfig,
    tokens: Path,
    training: list[RenderedChat],
    context_tokens: int,
    session: StageSession,
) -> list[RenderedChat]:
    wanted = count_tokens(training) * config.replay_fraction / (1 - config.replay_fraction)
    if wanted < 1:
        return []
    replayed, num_cut = replayed_documents(
        TokenShards(tokens, "train"), int(wanted), context_tokens, config.seed
    )
    session.log(
        f"{len(replayed):,} documents are replayed, {num_cut:,} of them only up to the length of a row"
    )
    if (found := count_tokens(replayed)) < 0.9 * int(wanted):
        session.warn(
            f"the corpus has {found:,} tokens to replay, each document at most a row long, where "
            f"replay_fraction = {config.replay_fraction} wants {int(wanted):,}"
        )
    return replayed


def _say_what_was_packed(rows: PackedRows, training: list[RenderedChat], session: StageSession) -> None:
    targets = sum(chat.num_targets for chat in training)
    session.log(
        f"{len(training):,} conversations and replayed documents, {count_tokens(training):,} tokens "
        f"({targets:,} trained on), in {rows.num_rows:,} rows that are {rows.fill_fraction:.1%} full"
    )
    if rows.num_truncated:
        session.warn(
            f"{rows.num_truncated:,} conversations are longer than a row: their end was cut off"
            + (
                f", {rows.num_cut_before_call:,} of them before a tool call"
                if rows.num_cut_before_call
                else ""
            )
        )
    if rows.num_without_targets:
        session.warn(f"{rows.num_without_targets:,} conversations have nothing to train on: left out")
