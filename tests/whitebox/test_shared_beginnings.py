"""Answers laid end to end against padded rows, each computed whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.whitebox.config import ModelConfig
from stages.whitebox.losses import IGNORED, sequence_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.shared_beginnings import lay_end_to_end, row_log_probs

PROMPT = [1, 7, 8, 9]


def rows_of(answers: list[list[int]], prompt: list[int]) -> tuple[Tensor, Tensor]:
    width = len(prompt) + max(len(answer) for answer in answers)
    ids, targets = torch.full((len(answers), width), 3), torch.full((len(answers), width), IGNORED)
    for row, answer in enumerate(answers):
        whole = torch.tensor(prompt + answer)
        ids[row, : len(whole)] = whole
        targets[row, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
    return ids, targets


PARTING = [[20, 21, 22], [30, 31]], [[20, 21, 25, 26], [33]]
"""Chosen answers and their rejected ones: a pair that begins alike, and one that parts at once."""


def test_what_is_laid_is_counted_once() -> None:
    ids, targets = rows_of([*PARTING[0], *PARTING[1]], PROMPT)
    laid = lay_end_to_end(ids, targets)
    # Without the last token, which predicts nothing; the rejected rows share 5 tokens, and 3.
    assert laid.ids_1xM[0].tolist() == [1, 7, 8, 9, 20, 21, 1, 7, 8, 9, 30, 21, 25, 9]
    assert laid.positions_1xM[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 3]
    assert [tuple(piece) for piece in laid.pieces.pieces[2:]] == [(2, 0, 5), (1, 1, 3)]
    counted = torch.bincount(laid.answer_rows_E).tolist()
    assert counted == [3, 2, 4, 1]


@pytest.mark.parametrize(
    ("answers", "prompt"),
    [
        ([*PARTING[0], *PARTING[1]], PROMPT),
        ([[20], [20, 21]], PROMPT),  # one answer is the other's beginning, either way round
        ([[20, 21], [20]], PROMPT),
        ([[20, 21], [20, 21]], PROMPT),
        ([[20, 21], [40], [41, 42]], PROMPT),  # no pairs
        ([[20, 21], []], PROMPT),  # nothing to predict in the second row
        ([[], []], PROMPT),
    ],
)
def test_log_probs_and_gradients_are_those_of_padded_rows(
    answers: list[list[int]], prompt: list[int]
) -> None:
    torch.manual_seed(1)
    model = CausalLM(ModelConfig(61, 32, 64, 2, 4, 2, 8, max_position_embeddings=32))
    ids, targets = rows_of(answers, prompt)
    weights_B = torch.linspace(-1.0, 2.0, len(ids))
    expected_B = sequence_log_probs(model.hidden_states(ids), model.output_weight(), targets)
    found_B = row_log_probs(model, ids, targets)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-5, atol=1e-6)
    if not found_B.requires_grad:
        return
    parameters = list(model.parameters())
    expected = torch.autograd.grad((weights_B * expected_B).sum(), parameters)
    found = torch.autograd.grad((weights_B * found_B).sum(), parameters)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
