"""Answers that are each known as good or as bad: what KTO learns from, in batches with its baseline.

Shapes: R answers, U answers of an update, B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.dpo.pairs import Completion, PairBatches, Pairs, rows_of

COUPLE = "single answers"
"""The kind of a pair that `with_couples` made."""


@dataclass(frozen=True)
class Answers:
    """Lists of equal length."""

    completions: list[Completion]
    is_desirable: list[bool]
    mismatched: list[Completion]
    """Each answer's prompt with an answer to another prompt, cut to the longest completion."""

    def __len__(self) -> int:
        return len(self.completions)


def answers_of(pairs: Pairs) -> Answers:
    """Pairs as two answers each, and then the single ones."""
    singles = [single.completion for single in pairs.singles]
    longest = max((len(c.ids) for c in (*pairs.chosen, *pairs.rejected, *singles)), default=0)
    # Chosen ones get chosen answers: with both in one list everybody's neighbour would be a rejected one.
    mismatched = [_mismatched(side, longest) for side in (pairs.chosen, pairs.rejected, singles)]
    return Answers(
        _by_turns(pairs.chosen, pairs.rejected) + singles,
        [True, False] * len(pairs) + [single.is_desirable for single in pairs.singles],
        _by_turns(*mismatched[:2]) + mismatched[2],
    )


def _by_turns(chosen: list[Completion], rejected: list[Completion]) -> list[Completion]:
    return [answer for both in zip(chosen, rejected, strict=True) for answer in both]


def _mismatched(completions: list[Completion], longest: int) -> list[Completion]:
    """Each prompt with the answer of the nearest earlier completion (around the end) to another prompt.

    Where all prompts are one the answer stays: there is nothing to mismatch.
    """
    found: list[Completion] = []
    previous = other = None
    for completion in (*completions, *completions):  # the first ones find theirs in the second round
        own = completion.ids[: completion.start]
        if previous is not None and own != previous.ids[: previous.start]:
            other = previous
        previous, answer = completion, other or completion
        found.append(Completion((own + answer.ids[answer.start :])[:longest], completion.start))
    return found[len(completions) :]


def with_couples(pairs: Pairs) -> Pairs:
    """The pairs, and the single answers as couples of a good and a bad one, each with its own prompt.

    Couples are made in the order of the rows, and what is over is left out. No answer is in two of them, so
    that the interval of the accuracy holds.
    """
    good = [single for single in pairs.singles if single.is_desirable]
    bad = [single for single in pairs.singles if not single.is_desirable]
    couples = list(zip(good, bad, strict=False))
    return replace(
        pairs,
        ids=pairs.ids + [g.pair_id for g, _ in couples],
        kinds=pairs.kinds + [COUPLE] * len(couples),
        chosen=pairs.chosen + [g.completion for g, _ in couples],
        rejected=pairs.rejected + [b.completion for _, b in couples],
        singles=[],
    )


class AnswerBatches(PairBatches):
    """Single answers in the order and the updates of `PairBatches`.

    A batch has "ids" and "targets" (RxT), "is_desirable" and "reference" (R). The first micro batch of an
    update also has "mismatched_ids", "mismatched_targets" (UxT) and "mismatched_reference" (U), for the
    baseline of the whole update: so the micro batches' size does not change it.
    """

    unit = "answers"

    def __init__(
        self,
        answers: Answers,
        reference_2xR: Tensor,
        update_answers: int,
        pad_id: int,
        seed: int,
        micro_batch_answers: int | None = None,
    ) -> None:
        self.answers, self.both_references = answers, reference_2xR
        as_pairs = Pairs(chosen=answers.completions, rejected=answers.completions)  # for count and lengths
        super().__init__(as_pairs, None, update_answers, pad_id, seed, micro_batch_answers)

    def next_batch(self) -> dict[str, Tensor]:
        """The next answers."""
        begins_update = self._drawn % self.batches_per_update == 0
        of_update = self._of_update() if begins_update else []
        picked = self._next_picked()
        batch = rows_of([self.answers.completions[i] for i in picked], self.pad_id)
        batch["is_desirable"] = torch.tensor([self.answers.is_desirable[i] for i in picked])
        batch["reference"] = self.both_references[0, picked]
        if begins_update:
            mismatched = rows_of([self.answers.mismatched[i] for i in of_update], self.pad_id)
            batch |= {f"mismatched_{name}": tensor for name, tensor in mismatched.items()}
            batch["mismatched_reference"] = self.both_references[1, of_update]
        return batch

    def _of_update(self) -> list[int]:
        epoch, place = divmod(self._drawn, self.batches_per_epoch)
        parts = self._order(epoch)[place : place + self.batches_per_update]
        return [answer for part in parts for answer in part]
