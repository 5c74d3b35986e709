"""Preference pairs as token ids: a prompt with the chosen answer, and with the rejected one.

Shapes: P pairs, B rows of a batch (two per pair: all chosen, then all rejected), T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_contracts.tables import read_rows
from stages.whitebox.chat_format import messages_from_columns, render, tools_from_column
from stages.whitebox.losses import IGNORED
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import largest_part


@dataclass(frozen=True)
class Completion:
    """Ids of prompt and answer; the answer, <|im_end|> included, begins at `start`."""

    ids: list[int]
    start: int


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

    def __len__(self) -> int:
        return len(self.chosen)

    def head(self, count: int) -> Pairs:
        """At most `count` of them, at even distances."""
        if count >= len(self):
            return self
        picked = np.linspace(0, len(self) - 1, count).round().astype(int).tolist()
        columns = (
            [column[i] for i in picked] for column in (self.ids, self.kinds, self.chosen, self.rejected)
        )
        return Pairs(*columns)


def read_pairs(folder: Path, tokenizer: Tokenizer, context_tokens: int, max_pairs: int) -> dict[str, Pairs]:
    """Split -> pairs; of the training split at most `max_pairs`, drawn by hash.

    A pair that does not fit is left out whole and counted: cutting the answers would teach that they stop
    there. Raises ValueError when a split has no pair left, and with the id for a prompt that cannot be
    rendered.
    """
    chosen = _draw(folder, max_pairs)
    pairs = {"train": Pairs(), "validation": Pairs()}
    for row in read_rows(folder):
        if row["split"] == "validation" or row["pair_id"] in chosen:
            _add(pairs[row["split"]], row, tokenizer, context_tokens)
    for name, split in pairs.items():
        if not len(split):
            raise ValueError(
                f"there are no {name} pairs of at most {context_tokens} tokens ({split.num_too_long} longer);"
                " give corpus_prep pairs (prompt, chosen, rejected), conversations, or text with titles"
            )
    return pairs


def _draw(folder: Path, count: int) -> frozenset[str]:
    rows = read_rows(folder, ["pair_id", "split"])
    ids = [row["pair_id"] for row in rows if row["split"] == "train"]
    return frozenset(sorted(ids, key=lambda i: hashlib.blake2b(i.encode(), digest_size=8).digest())[:count])


def _add(pairs: Pairs, row: Mapping[str, Any], tokenizer: Tokenizer, context_tokens: int) -> None:
    try:
        tools = tools_from_column(row["tools"])
        prompt = messages_from_columns(row["prompt"])
        answers = messages_from_columns([row["chosen"], row["rejected"]])
        chosen, rejected = (complete(prompt, answer, tokenizer, tools) for answer in answers)
    except ValueError as error:
        raise ValueError(f"preference pair {row['pair_id']}: {error}") from error
    if chosen.ids == rejected.ids:
        pairs.num_equal += 1
    elif max(len(chosen.ids), len(rejected.ids)) > context_tokens:
        pairs.num_too_long += 1
    else:
        pairs.ids.append(row["pair_id"])
        pairs.kinds.append(row["kind"])
        pairs.chosen.append(chosen)
        pairs.rejected.append(rejected)


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
    completions = [pairs.chosen[i] for i in picked] + [pairs.rejected[i] for i in picked]
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

    Which pairs make an update follows from `update_pairs` and the seed alone. A micro batch is the largest
    equal part of one that has at most `micro_batch_pairs`.

    Adds "reference_chosen" and "reference_rejected" (P float32) to what `batch_of` gives.
    """

    SORTED_UPDATES = 8  # so many updates' pairs are sorted by length and then shuffled again

    def __init__(
        self,
        pairs: Pairs,
        reference_2xP: Tensor,
        update_pairs: int,
        pad_id: int,
        seed: int,
        micro_batch_pairs: int | None = None,
    ) -> None:
        self.pairs, self.reference_2xP, self.pad_id, self.seed = pairs, reference_2xP, pad_id, seed
        self.update_pairs = min(update_pairs, len(pairs))
        self.batch_size = largest_part(self.update_pairs, micro_batch_pairs or self.update_pairs)
        self.updates_per_epoch = len(pairs) // self.update_pairs
        self.batches_per_update = self.update_pairs // self.batch_size
        self.batches_per_epoch = self.updates_per_epoch * self.batches_per_update
        self._drawn = 0

    def next_batch(self) -> dict[str, Tensor]:
        """The next pairs; those that fill no update of their epoch fall out, others each time."""
        epoch, place = divmod(self._drawn, self.batches_per_epoch)
        picked = self._order(epoch)[place]
        self._drawn += 1
        reference = self.reference_2xP[:, picked]
        return batch_of(self.pairs, picked, self.pad_id) | {
            "reference_chosen": reference[0],
            "reference_rejected": reference[1],
        }

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
        order = generator.permutation(len(self.pairs))[: self.updates_per_epoch * self.update_pairs].tolist()
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
