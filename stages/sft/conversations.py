"""Conversations of the corpus as token ids, and what else a training epoch is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_contracts.tables import read_rows
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import (
    RenderedChat,
    messages_from_columns,
    render,
    strip_content,
    tools_from_column,
)
from stages.whitebox.tokenizer import Tokenizer

Message = Mapping[str, Any]


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


def read_chats(
    folder: Path,
    tokenizer: Tokenizer,
    max_conversations: int,
    answers: Mapping[str, Message] | None = None,
) -> dict[str, Chats]:
    """Split -> conversations; of the training split at most `max_conversations`, drawn by hash.

    answers: id -> an assistant's turn to train on in place of the conversation's last one.
    Raises ValueError, with the id, for a conversation that cannot be rendered, and when a split is empty.
    """
    chats = {"train": Chats(), "validation": Chats()}
    for row in drawn_rows(folder, max_conversations):
        answer = (answers or {}).get(row["conversation_id"]) if row["split"] == "train" else None
        try:
            _add(chats[row["split"]], row, tokenizer, answer)
        except ValueError as error:
            raise ValueError(f"conversation {row['conversation_id']}: {error}") from error
    for name, split in chats.items():
        if not len(split):
            found = ", ".join(f"{len(chats[other]):,} {other}" for other in chats if other != name)
            raise ValueError(
                f"there are no {name} conversations ({found}); give corpus_prep more text or "
                "conversations, or another share of them to hold out ([corpus_prep] validation_fraction)"
            )
    return chats


def drawn_rows(folder: Path, max_conversations: int) -> Iterator[Mapping[str, Any]]:
    """All held-out rows, and of the training split at most so many, drawn by hash."""
    chosen = _draw(folder, max_conversations)
    for row in read_rows(folder):
        if row["split"] != "train" or row["conversation_id"] in chosen:
            yield row


def last_answer(messages: Sequence[Message]) -> int | None:
    """The place of the assistant's last turn; None where it says nothing."""
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return places[-1] if places else None


def _add(chats: Chats, row: Mapping[str, Any], tokenizer: Tokenizer, answer: Message | None) -> None:
    tools = tools_from_column(row["tools"])
    messages = messages_from_columns(row["messages"])
    if answer is not None:
        place = last_answer(messages)
        weight = {} if place is None else {"weight": messages[place].get("weight")}
        messages = [*messages[:place], {**answer, **weight}]
    for view in views(messages) if tokenizer.reasoning == "last_turn" else [messages]:
        chats.ids.append(row["conversation_id"])
        chats.kinds.append(row["kind"])
        chats.rendered.append(render(view, tokenizer, tools=tools))


def views(messages: Sequence[Message]) -> list[list[Message]]:
    """The conversation as it stood at each of its answers, where earlier reasoning is not shown.

    An answer that was thought about is trained on in a view of its own that ends with it: later its reasoning
    is gone. All other answers are trained on in the last view, where each sees what it sees at serving.
    """
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    ends = [*asked[1:], len(messages)]
    turns = list(zip([0, *asked[1:]], ends, strict=True)) if asked else [(0, len(messages))]
    thoughtful = [(start, end) for start, end in turns[:-1] if any(map(_thinks, messages[start:end]))]
    seen = [_only_trained(messages[:end], range(start, end)) for start, end in thoughtful]
    rest = set(range(len(messages))).difference(*(range(start, end) for start, end in thoughtful))
    return [*seen, _only_trained(messages, rest)]


def _thinks(message: Message) -> bool:
    return message["role"] == "assistant" and bool(strip_content(message.get("reasoning_content") or ""))


def _only_trained(messages: Sequence[Message], places: Container[int]) -> list[Message]:
    return [
        message if place in places else {**message, "weight": 0.0} for place, message in enumerate(messages)
    ]


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


class Replayed(NamedTuple):
    """Documents among the conversations, and how many of them are only the beginning of a longer one."""

    documents: list[RenderedChat]
    num_cut: int


def replayed_documents(shards: TokenShards, num_tokens: int, context_tokens: int, seed: int) -> Replayed:
    """Training documents, at most a row long each, of about `num_tokens` tokens; every token is a target."""
    replayed: list[RenderedChat] = []
    num_cut = 0
    order = np.random.default_rng(seed).permutation(shards.num_documents)
    for index in order.tolist():
        if num_tokens <= 0:
            break
        document = shards.document(index)
        num_cut += len(document) > context_tokens
        ids = document[:context_tokens].tolist()
        replayed.append(RenderedChat(ids, [False] + [True] * (len(ids) - 1)))
        num_tokens -= len(ids)
    return Replayed(replayed, num_cut)


def count_tokens(chats: Sequence[RenderedChat]) -> int:
    """Tokens of all conversations together."""
    return sum(len(chat.ids) for chat in chats)
