"""Preference pairs as token ids: a prompt with the chosen answer, and with the rejected one.

Shapes: P pairs, B rows of a batch (two per pair: all chosen, then all rejected), T tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_contracts.tables import read_rows
from stages.whitebox.chat_format import messages_from_columns, render, tools_from_column
from stages.whitebox.losses import IGNORED
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import largest_part

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Completion:
    """Ids of prompt and answer; the answer, <|im_end|> included, begins at `start`."""

    ids: list[int]
    start: int


class SingleAnswer(NamedTuple):
    """An answer that is known as good or as bad, without another one to the same prompt."""

    pair_id: str
    completion: Completion
    is_desirable: bool


@dataclass
class Pairs:
    """Pairs of one split; lists of equal length."""

    ids: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    chosen: list[Completion] = field(default_factory=list)
    rejected: list[Completion] = field(default_factory=list)
    num_too_long: int = 0
    """Pairs that were left out, because one of their answers does not fit."""
    num_equal: int = 0
    """Pairs that were left out, because both answers are the same tokens."""
    singles: list[SingleAnswer] = field(default_factory=list)
    """Answers without a partner, which only KTO learns from."""

    def __len__(self) -> int:
        return len(self.chosen)

    def head(self, count: int) -> Pairs:
        """At most `count` of them, at even distances."""
        if count >= len(self):
            return self
        return self._picked(np.linspace(0, len(self) - 1, count).round().astype(int).tolist())

    def of_kind(self, kind: str) -> Pairs:
        """Those of one kind, and all single answers."""
        return self._picked([i for i, own in enumerate(self.kinds) if own == kind])

    def _picked(self, picked: Sequence[int]) -> Pairs:
        columns = (self.ids, self.kinds, self.chosen, self.rejected)
        ids, kinds, chosen, rejected = ([column[i] for i in picked] for column in columns)
        return replace(self, ids=ids, kinds=kinds, chosen=chosen, rejected=rejected)


def read_pairs(
    folder: Path, tokenizer: Tokenizer, context_tokens: int, max_pairs: int, method: str = "dpo"
) -> dict[str, Pairs]:
    """Split -> pairs; of the training split at most `max_pairs` that `method` learns from, drawn by hash.

    A pair that does not fit is left out whole and counted: cutting the answers would teach that they stop
    there. Rows with one answer become `singles`. Raises ValueError with the id for a prompt that cannot be
    rendered.
    """
    not_drawn = _not_drawn(folder, max_pairs, method)
    pairs = {"train": Pairs(), "validation": Pairs()}
    for row in read_rows(folder):
        if row["pair_id"] not in not_drawn:
            _add(pairs[row["split"]], row, tokenizer, context_tokens)
    return pairs


def _not_drawn(folder: Path, count: int, method: str) -> frozenset[str]:
    """What is over of the rows that the method can use; it is for others to count what it cannot."""
    rows = [
        (row["pair_id"], row["kind"], row["chosen"] is None or row["rejected"] is None)
        for row in read_rows(folder, ["pair_id", "split", "kind", "chosen", "rejected"])
        if row["split"] == "train"
    ]
    has_singles = any(is_single for *_, is_single in rows)
    if method == "kto":  # beside single answers it wants no derived pairs
        usable = [key for key, kind, _ in rows if kind == "own" or not has_singles]
    else:
        usable = [key for key, _, is_single in rows if not is_single]
    by_hash = sorted(usable, key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).digest())
    return frozenset(by_hash[count:])


def _add(pairs: Pairs, row: Mapping[str, Any], tokenizer: Tokenizer, context_tokens: int) -> None:
    try:
        tools = tools_from_column(row["tools"])
        prompt = messages_from_columns(row["prompt"])
        answers = messages_from_columns([row[side] for side in SIDES if row[side] is not None])
        completions = [complete(prompt, answer, tokenizer, tools) for answer in answers]
    except ValueError as error:
        raise ValueError(f"preference pair {row['pair_id']}: {error}") from error
    if len(completions) == 2 and completions[0].ids == completions[1].ids:
        pairs.num_equal += 1
    elif max(len(completion.ids) for completion in completions) > context_tokens:
        pairs.num_too_long += 1
    elif len(completions) == 1:
        pairs.singles.append(SingleAnswer(row["pair_id"], completions[0], row["chosen"] is not None))
    else:
        pairs.ids.append(row["pair_id"])
        pairs.kinds.append(row["kind"])
        pairs.chosen.append(completions[0])
        pairs.rejected.append(completions[1])


def complete(
    prompt: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Completion:
    """`prompt` and then `answer`, the assistant's turn, up to its <|im_end|>; tools: functions on offer."""
    start = len(render(prompt, tokenizer, add_generation_prompt=True, tools=tools).ids)
    whole = render([*prompt, answer], tokenizer, tools=tools)
    return Completion(whole.ids[:-1], start)  # without the newline behind <|im_end|>, which nobody predicts


def batch_of(pairs: Pairs, picked: Sequence[int], pad_id: int) -> dict[str, Tensor]:
    """ "ids" and "targets", BxT int64: the chosen answers of all picked pairs, then the rejected ones."""
    return rows_of([pairs.chosen[i] for i in picked] + [pairs.rejected[i] for i in picked], pad_id)


def rows_of(completions: Sequence[Completion], pad_id: int) -> dict[str, Tensor]:
    """ "ids" and "targets", BxT int64: a row for each completion, padded on the right."""
    width = max(len(completion.ids) for completion in completions)
    ids_BxT = torch.full((len(completions), width), pad_id)
    targets_BxT = torch.full((len(completions), width), IGNORED)
    for row, completion in enumerate(completions):
        ids, start = torch.tensor(completion.ids), completion.start
        ids_BxT[row, : len(ids)] = ids
        targets_BxT[row, start - 1 : len(ids) - 1] = ids[start:]
    return {"ids": ids_BxT, "targets": targets_BxT}


class PairBatches:
    """Pairs in a new order each epoch; pairs of similar length share an update, to save padding.

    Which pairs make an update follows from `update_pairs` and the seed alone. An epoch shows every pair; what
    its last update lacks are pairs that it has shown. A micro batch is the largest equal part of an update
    that has at most `micro_batch_pairs`.

    Adds "reference_chosen" and "reference_rejected" (P float32) to what `batch_of` gives, where there is a
    reference.
    """

    SORTED_UPDATES = 8  # so many updates' pairs are sorted by length and then shuffled again
    unit = "pairs"

    def __init__(
        self,
        pairs: Pairs,
        reference_2xP: Tensor | None,
        update_pairs: int,
        pad_id: int,
        seed: int,
        micro_batch_pairs: int | None = None,
    ) -> None:
        self.pairs, self.reference_2xP, self.pad_id, self.seed = pairs, reference_2xP, pad_id, seed
        self.update_pairs = min(update_pairs, len(pairs))
        self.batch_size = largest_part(self.update_pairs, micro_batch_pairs or self.update_pairs)
        self.updates_per_epoch = math.ceil(len(pairs) / self.update_pairs)
        self.batches_per_update = self.update_pairs // self.batch_size
        self.batches_per_epoch = self.updates_per_epoch * self.batches_per_update
        self._drawn = 0

    def next_batch(self) -> dict[str, Tensor]:
        """The next pairs."""
        picked = self._next_picked()
        batch = batch_of(self.pairs, picked, self.pad_id)
        if self.reference_2xP is None:
            return batch
        chosen_P, rejected_P = self.reference_2xP[:, picked]
        return batch | {"reference_chosen": chosen_P, "reference_rejected": rejected_P}

    def _next_picked(self) -> list[int]:
        epoch, place = divmod(self._drawn, self.batches_per_epoch)
        self._drawn += 1
        return self._order(epoch)[place]

    def state_dict(self) -> dict[str, Any]:
        """How many batches were drawn, and of what."""
        return {"seed": self.seed, "num_pairs": len(self.pairs), "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place. Raises ValueError when it is one of other pairs or another seed."""
        mine = self.state_dict()
        for name in ("seed", "num_pairs"):
            if state[name] != mine[name]:
                raise ValueError(f"the saved batches have {name} {state[name]}, these have {mine[name]}")
        self._drawn = int(state["drawn"])

    def _order(self, epoch: int) -> list[list[int]]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._batches = epoch, self._shuffle(np.random.default_rng([self.seed, epoch]))
        return self._batches

    def _shuffle(self, generator: np.random.Generator) -> list[list[int]]:
        order = generator.permutation(len(self.pairs)).tolist()
        order += order[: self.updates_per_epoch * self.update_pairs - len(order)]
        window = self.SORTED_UPDATES * self.update_pairs
        alike: list[int] = []
        for start in range(0, len(order), window):
            alike += sorted(order[start : start + window], key=lambda i: (self._length(i), i))
        size = self.batch_size
        batches = [alike[start : start + size] for start in range(0, len(alike), size)]
        updates = generator.permutation(self.updates_per_epoch).tolist()
        parts = range(self.batches_per_update)
        return [batches[update * self.batches_per_update + part] for update in updates for part in parts]

    def _length(self, pair: int) -> int:
        return max(len(self.pairs.chosen[pair].ids), len(self.pairs.rejected[pair].ids))
