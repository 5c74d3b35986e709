"""Preference losses by the papers' formulas, written out for one example at a time in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from stages.whitebox.preference_losses import (
    PairLogProbs,
    chosen_nll,
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    orpo_loss,
    reward_loss,
    simpo_loss,
    wins,
)

CHOSEN, REJECTED = [-5.0, -9.0, -7.0], [-6.0, -8.0, -7.0]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-6.0, -8.5, -7.0], [-6.5, -8.5, -7.0]
CHOSEN_TOKENS, REJECTED_TOKENS = [4, 3, 7], [2, 8, 7]
GAINS = [1.0 - 0.5, -0.5 - 0.5, 0.0]


def pairs() -> PairLogProbs:
    columns = (CHOSEN, REJECTED, CHOSEN_TOKENS, REJECTED_TOKENS, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    return PairLogProbs(*(torch.tensor(column) for column in columns))


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def test_dpo() -> None:
    found = dpo_loss(pairs(), beta=0.5)
    assert found.margin_P.tolist() == pytest.approx([0.5 * gain for gain in GAINS])
    assert found.loss_P.tolist() == pytest.approx([minus_log_sigmoid(0.5 * gain) for gain in GAINS])
    assert wins(found.margin_P).tolist() == [1.0, 0.0, 0.5]


def test_dpo_pushes_chosen_up_and_rejected_down() -> None:
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    found = dpo_loss(PairLogProbs(chosen, rejected, torch.ones(2), torch.ones(2)))
    assert found.loss_P.tolist() == pytest.approx([math.log(2)] * 2)
    assert not found.margin_P.requires_grad
    up, down = torch.autograd.grad(found.loss_P.sum(), (chosen, rejected))
    assert (up < 0).all()
    assert torch.equal(up, -down)


def test_conservative_and_robust_dpo() -> None:
    share, margins = 0.2, [0.5 * gain for gain in GAINS]
    both = [(minus_log_sigmoid(m), minus_log_sigmoid(-m)) for m in margins]
    careful = dpo_loss(pairs(), beta=0.5, label_smoothing=share).loss_P
    assert careful.tolist() == pytest.approx([0.8 * right + 0.2 * wrong for right, wrong in both])
    robust = dpo_loss(pairs(), beta=0.5, label_smoothing=share, robust=True).loss_P
    assert robust.tolist() == pytest.approx([(0.8 * right - 0.2 * wrong) / 0.6 for right, wrong in both])
    # What robust DPO is for: over pairs of which 20 % are swapped its mean is that of dpo on the right ones.
    swapped = PairLogProbs(*(pairs()[i] for i in (1, 0, 3, 2, 5, 4)))
    of_swapped = dpo_loss(swapped, beta=0.5, label_smoothing=share, robust=True).loss_P
    torch.testing.assert_close(0.8 * robust + 0.2 * of_swapped, dpo_loss(pairs(), beta=0.5).loss_P)


def test_length_normalised_dpo_and_ipo() -> None:
    gains = [1.0 / 4 - 0.5 / 2, -0.5 / 3 - 0.5 / 8, 0.0]
    found = dpo_loss(pairs(), beta=5.0, length_normalised=True)
    assert found.margin_P.tolist() == pytest.approx([5.0 * gain for gain in gains])
    asked = 1 / (2 * 0.5)
    assert ipo_loss(pairs(), beta=0.5).loss_P.tolist() == pytest.approx([(g - asked) ** 2 for g in gains])


def test_simpo_and_the_chosen_answers_own_loss() -> None:
    per_token = [
        (c / n, r / m) for c, n, r, m in zip(CHOSEN, CHOSEN_TOKENS, REJECTED, REJECTED_TOKENS, strict=True)
    ]
    found = simpo_loss(pairs(), beta=2.0, gamma=0.5)
    assert found.loss_P.tolist() == pytest.approx(
        [minus_log_sigmoid(2 * (c - r) - 0.5) for c, r in per_token]
    )
    assert chosen_nll(pairs()).tolist() == pytest.approx([-c for c, _ in per_token])


def test_orpo() -> None:
    def log_odds(log_p: float) -> float:
        p = math.exp(log_p)
        return math.log(p / (1 - p))

    expected = []
    for c, n, r, m in zip(CHOSEN, CHOSEN_TOKENS, REJECTED, REJECTED_TOKENS, strict=True):
        expected.append(-c / n + 0.3 * minus_log_sigmoid(log_odds(c / n) - log_odds(r / m)))
    assert orpo_loss(pairs(), beta=0.3).loss_P.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("log_p", [0.0, -1e-9, -1e-4, -0.6931472, -0.7, -30.0, -200.0])
def test_orpo_is_finite_however_sure_the_model_is(log_p: float) -> None:
    chosen = torch.tensor([log_p], requires_grad=True)
    found = orpo_loss(PairLogProbs(chosen, torch.tensor([-1.0]), torch.ones(1), torch.ones(1)))
    found.loss_P.sum().backward()
    assert torch.isfinite(found.loss_P).all()
    assert torch.isfinite(chosen.grad).all()


def test_kto() -> None:
    gains, good = torch.tensor([0.5, -0.4, 0.2, 1.5]), torch.tensor([True, True, False, False])
    found = kto_loss(gains, good, 0.3, beta=2.0, desirable_weight=1.5, undesirable_weight=0.5)

    def one(gain: float, is_good: bool) -> float:
        lead = 2.0 * (gain - 0.3) if is_good else 2.0 * (0.3 - gain)
        return (1.5 if is_good else 0.5) * (1 - 1 / (1 + math.exp(-lead)))

    assert found.tolist() == pytest.approx(
        [one(*pair) for pair in zip(gains.tolist(), good.tolist(), strict=True)]
    )


def test_the_baseline_of_kto_is_a_mean_without_gradient_and_never_negative() -> None:
    gains = torch.tensor([0.5, -0.1], requires_grad=True)
    assert float(kto_baseline(gains)) == pytest.approx(0.2)
    assert float(kto_baseline(gains - 1)) == 0.0
    assert not kto_baseline(gains).requires_grad


def test_reward_with_a_margin() -> None:
    found = reward_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), asked_margin=0.25)
    assert found.margin_P.tolist() == [0.5, -0.5]
    assert found.loss_P.tolist() == pytest.approx([minus_log_sigmoid(0.25), minus_log_sigmoid(-0.75)])
