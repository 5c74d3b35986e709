"""A reward model opens in transformers, with the same scores, whatever its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM
from stages.whitebox.reward_model import RewardModel, save_reward_model

SIZES = (61, 32, 48, 2, 2, 1, 16)
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"qk_norm": False},
    "llama untied": {"qk_norm": False, "tie_word_embeddings": False},
    "qwen2": {"qk_norm": False, "attention_bias": True},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "mistral": {"qk_norm": False, "sliding_window": 4},
}


def reward_model(seed: int = 0, **options: Any) -> RewardModel:
    torch.manual_seed(seed)
    return RewardModel(CausalLM(ModelConfig(*SIZES, **options)), seed)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = reward_model(**KINDS[kind]).eval()
    save_reward_model(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.num_labels == 1
    ids = torch.randint(4, 61, (3, 9))
    lengths = torch.tensor([9, 4, 7])
    for row, length in enumerate(lengths.tolist()):
        ids[row, length:] = model.language_model.config.pad_token_id
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits[:, 0]
        torch.testing.assert_close(model(ids, lengths), expected, atol=1e-5, rtol=1e-5)


def test_what_stands_behind_the_last_token_does_not_count() -> None:
    model = reward_model()
    ids = torch.randint(4, 61, (2, 9))
    ids[1, :5] = ids[0, :5]
    scores = model(ids, torch.tensor([5, 5])).detach()
    assert float(scores[0]) == pytest.approx(float(scores[1]), abs=1e-6)
    assert float(model(ids, torch.tensor([6, 6]))[0].detach()) != float(scores[0])


def test_the_head_is_drawn_by_its_seed() -> None:
    assert torch.equal(reward_model().score.weight, reward_model().score.weight)
    other = RewardModel(reward_model().language_model, seed=1)
    assert not torch.equal(reward_model().score.weight, other.score.weight)


def test_an_output_matrix_of_its_own_is_not_trained() -> None:
    model = reward_model(tie_word_embeddings=False)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "language_model.lm_head.weight" not in names
    assert {"score.weight", "language_model.model.embed_tokens.weight"} <= names


def test_an_architecture_without_such_a_head_is_refused() -> None:
    options = {**EXPERTS, "scoring_func": "sigmoid", "n_shared_experts": 1}
    with pytest.raises(ValueError, match="no reward model of architecture dots1"):
        reward_model(**options)


def test_scores_are_float32_beside_products_in_bfloat16() -> None:
    model = reward_model().eval()
    ids_BxT, num_tokens_B = torch.arange(60).view(15, 4), torch.full((15,), 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        score_B = model(ids_BxT, num_tokens_B)
    assert (score_B != score_B.bfloat16().float()).any()
