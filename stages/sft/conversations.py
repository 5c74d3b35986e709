"""Conversations of the corpus as token ids, and what else a training epoch is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_contracts.tables import read_rows
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import RenderedChat, messages_from_columns, render, tools_from_column
from stages.whitebox.tokenizer import Tokenizer


@dataclass
class Chats:
    """Rendered conversations of one split, with the id and the kind of each."""

    ids: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    rendered: list[RenderedChat] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rendered)

    def head(self, count: int) -> Chats:
        """At most `count` of them, at even distances, so that every kind stays represented."""
        if count >= len(self):
            return self
        picked = np.linspace(0, len(self) - 1, count).round().astype(int).tolist()
        columns = ([column[i] for i in picked] for column in (self.ids, self.kinds, self.rendered))
        return Chats(*columns)


def read_chats(folder: Path, tokenizer: Tokenizer, max_conversations: int) -> dict[str, Chats]:
    """Split -> conversations; of the training split at most `max_conversations`, drawn by hash.

    Raises ValueError, with the id, for a conversation that cannot be rendered, and when a split is empty.
    """
    chosen = _draw(folder, max_conversations)
    chats = {"train": Chats(), "validation": Chats()}
    for row in read_rows(folder):
        if row["split"] == "train" and row["conversation_id"] not in chosen:
            continue
        try:
            tools = tools_from_column(row["tools"])
            rendered = render(messages_from_columns(row["messages"]), tokenizer, tools=tools)
        except ValueError as error:
            raise ValueError(f"conversation {row['conversation_id']}: {error}") from error
        split = chats[row["split"]]
        split.ids.append(row["conversation_id"])
        split.kinds.append(row["kind"])
        split.rendered.append(rendered)
    for name, split in chats.items():
        if not len(split):
            raise ValueError(f"there are no {name} conversations; give corpus_prep more text")
    return chats


def _draw(folder: Path, count: int) -> frozenset[str]:
    rows = read_rows(folder, ["conversation_id", "split"])
    ids = [row["conversation_id"] for row in rows if row["split"] == "train"]
    return frozenset(sorted(ids, key=_hash)[:count])


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def repeat_by_kind(chats: Chats, weights: Mapping[str, float]) -> list[RenderedChat]:
    """The conversations of an epoch: each as often as the weight of its kind says.

    A weight of 2.5 takes every conversation twice and every second one, by hash, a third time.
    Raises ValueError for a weight of a kind that does not occur.
    """
    if unknown := sorted(set(weights) - set(chats.kinds)):
        raise ValueError(f"kind_weights names {unknown}; kinds of conversations: {sorted(set(chats.kinds))}")
    epoch: list[RenderedChat] = []
    for conversation_id, kind, rendered in zip(chats.ids, chats.kinds, chats.rendered, strict=True):
        weight = weights.get(kind, 1.0)
        share = int.from_bytes(_hash(f"share {conversation_id}"), "big") / 2**64
        epoch += [rendered] * (int(weight) + (share < weight % 1))
    return epoch


def replayed_documents(
    shards: TokenShards, num_tokens: int, context_tokens: int, seed: int
) -> list[RenderedChat]:
    """Training documents, at most a row long each, of about `num_tokens` tokens; every token is a target."""
    replayed: list[RenderedChat] = []
    order = np.random.default_rng(seed).permutation(shards.num_documents)
    for index in order.tolist():
        if num_tokens <= 0:
            break
        ids = shards.document(index)[:context_tokens].tolist()
        replayed.append(RenderedChat(ids, [False] + [True] * (len(ids) - 1)))
        num_tokens -= len(ids)
    return replayed


def count_tokens(chats: Sequence[RenderedChat]) -> int:
    """Tokens of all conversations together."""
    return sum(len(chat.ids) for chat in chats)
