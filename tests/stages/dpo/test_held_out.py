"""Held-out pairs by known log-probabilities, and the distance to the reference against the exact one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.dpo.answers import Said, say
from stages.dpo.held_out import (
    answer_token_log_probs,
    kl_to_reference,
    log_probs_of_pairs,
    score_by_kind,
    score_pairs,
)
from stages.dpo.outcome import warn_of_endless_answers
from stages.dpo.pairs import Completion, Pairs, read_pairs
from stages.dpo.preference import log_probs_of
from stages.dpo.spec import DpoConfig
from stages.dpo.watch import Scores
from stages.whitebox.checkpoint import load_model
from stages.whitebox.preference_losses import PairLogProbs


def known() -> PairLogProbs:
    """Gains over the reference: 2, -5, 0 (a tie) and 1."""
    policy = torch.tensor([[-2.0, -9.0, -4.0, -4.0], [-8.0, -8.0, -8.0, -8.0]])
    reference = torch.tensor([[-4.0, -4.0, -4.0, -4.0], [-8.0, -8.0, -8.0, -7.0]])
    return PairLogProbs(*policy, torch.full((4,), 2), torch.full((4,), 4), *reference)


def test_scores_of_known_log_probs() -> None:
    config = DpoConfig(beta=0.5)
    score = score_pairs(config, known())
    assert score.margin == pytest.approx(0.5 * (2 - 5 + 0 + 1) / 4)
    assert (score.wins, score.accuracy) == (2.5, 0.625)
    assert score.num_chosen_likelier == 1  # per token -1 against -2; then -4.5, and twice -2 against -2
    assert (score.chosen_log_prob, score.rejected_log_prob) == (-19 / 4, -8.0)
    assert (score.chosen_log_prob_per_token, score.rejected_log_prob_per_token) == (-19 / 8, -2.0)
    assert (score.chosen_tokens, score.rejected_tokens) == (2.0, 4.0)
    low, high = score.interval
    assert low < 0.625 < high
    by_kind = score_by_kind(config, known(), ["x", "x", "y", "y"])
    assert {kind: found.wins for kind, found in by_kind.items()} == {"x": 1.0, "y": 1.5}


def test_methods_without_a_reference_are_judged_without_one() -> None:
    score = score_pairs(DpoConfig(method="simpo", beta=3.0), known())
    assert score.margin == pytest.approx(3.0 * (-19 / 8 + 2.0))
    assert score.wins == 2.0  # one win, two ties


def test_tokens_add_up_to_answers(preferences_part: Path, base_model: Any) -> None:
    pairs = read_pairs(preferences_part, base_model.tokenizer, 128, 1000)["train"]
    model = load_model(base_model.model)
    logp_N = answer_token_log_probs(model, pairs, 7, pad_id=3)
    found = log_probs_of_pairs(logp_N, 0 * logp_N, pairs)
    torch.testing.assert_close(torch.stack(found[:2]), log_probs_of(model, pairs, 40, pad_id=3))
    assert int(found.chosen_tokens_P.sum() + found.rejected_tokens_P.sum()) == len(logp_N)
    assert torch.equal(found.gains()[0], found.chosen_P)


def test_answers_of_couples_keep_their_own_prompts() -> None:
    pairs = Pairs(chosen=[Completion([1, 5, 6, 7], 2)], rejected=[Completion([1, 5, 9], 1)])
    found = log_probs_of_pairs(torch.tensor([-1.0, -2.0, -4.0, -8.0]), torch.zeros(4), pairs)
    assert [float(found.chosen_P), float(found.rejected_P)] == [-3.0, -12.0]


def test_k3_has_the_exact_kl_as_its_mean() -> None:
    policy_V, reference_V = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    exact = float((reference_V * (reference_V / policy_V).log()).sum())
    each = [kl_to_reference(policy_V[i : i + 1].log(), reference_V[i : i + 1].log()) for i in range(3)]
    assert min(each) >= 0
    assert sum(p * k for p, k in zip(reference_V.tolist(), each, strict=True)) == pytest.approx(exact)
    assert kl_to_reference(policy_V.log(), policy_V.log()) == 0


def test_the_kl_grows_with_what_answers_lose() -> None:
    reference_N = torch.full((10,), -1.0)
    assert kl_to_reference(reference_N - 5, reference_N) == pytest.approx(math.exp(-5) + 4, rel=1e-5)
    assert kl_to_reference(reference_N + 5, reference_N) == pytest.approx(math.e - 2)  # not e^5
    assert kl_to_reference(reference_N + 0.9, reference_N) == pytest.approx(math.exp(0.9) - 1.9, rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "is_said"), [(0.0, 0.75, True), (0.5, 0.75, False), (1.0, 0.0, False)]
)
def test_answers_that_no_longer_end_are_said(
    before: float, after: float, is_said: bool, open_session: Any, tmp_path: Path
) -> None:
    opened = open_session("dpo", tmp_path)
    score = score_pairs(DpoConfig(), known())
    scores = [Scores(score, {}, 0.0, 1.0, Said({}, {}, 9.0, share)) for share in (before, after)]
    warn_of_endless_answers(DpoConfig(), *scores, opened.session)
    said = [event["message"] for event in opened.events if event.get("level") == "warning"]
    assert said == (
        [
            f"{after:.0%} of the answers to held-out prompts do not end within 128 tokens, before it were "
            f"{before:.0%}: set [dpo] learning_rate or epochs lower, beta higher, sft_term = 1 or more to "
            "keep the chosen answers likely"
        ]
        if is_said
        else []
    )


def test_an_answer_that_fills_its_room_has_no_end(preferences_part: Path, base_model: Any) -> None:
    held_out = read_pairs(preferences_part, base_model.tokenizer, 128, 1000)["validation"]
    config = DpoConfig(sample_prompts=("The",), chat_prompts=("Hi",), sample_tokens=3, answer_tokens=5)
    found = say(config, load_model(base_model.model), base_model.tokenizer, held_out)
    assert found.answer_tokens == 5 and found.endless_answers == 1.0  # it was never trained
    assert list(found.documents) == ["The"] and list(found.chats) == ["Hi"]
