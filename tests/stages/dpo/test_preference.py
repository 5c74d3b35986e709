"""Log-probabilities, loss and scores against transformers and TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.dpo.pairs import Completion, Pairs, batch_of, read_pairs
from stages.dpo.preference import (
    answer_log_probs,
    log_probs_of,
    preference_loss,
    score_by_kind,
    score_pairs,
    stored_log_probs,
)
from stages.whitebox.checkpoint import load_model


@pytest.fixture(scope="module")
def pairs(preferences_part: Path, base_model: Any) -> Pairs:
    return read_pairs(preferences_part, base_model.tokenizer, 128, 1000)["train"]


def test_log_probs_equal_transformers_one_by_one(pairs: Pairs, base_model: Any) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(base_model.model)
    found = log_probs_of(load_model(base_model.model), pairs, batch_pairs=7, pad_id=3)
    for side, completions in enumerate((pairs.chosen, pairs.rejected)):
        for index, completion in enumerate(completions[:10]):
            ids = torch.tensor([completion.ids])
            with torch.no_grad():
                logp = theirs(ids).logits[0, :-1].log_softmax(dim=-1)
            expected = logp.gather(1, ids[0, 1:, None])[completion.start - 1 :].sum()
            assert float(found[side, index]) == pytest.approx(float(expected), abs=1e-4)


def test_loss_and_metrics_equal_trls(pairs: Pairs, base_model: Any, tmp_path: Path) -> None:
    """TRL's trainer computes loss, margin and accuracy of the same ids with the same two models."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(1)
    policy = AutoModelForCausalLM.from_pretrained(base_model.model)
    reference = AutoModelForCausalLM.from_pretrained(base_model.model)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    policy.save_pretrained(tmp_path / "policy")
    one = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    arguments = DPOConfig(str(tmp_path), beta=0.3, use_cpu=True, bf16=False, report_to=[])
    trainer = DPOTrainer(
        policy,
        reference,
        arguments,
        train_dataset=one,
        processing_class=AutoTokenizer.from_pretrained(base_model.tokenizer_folder),
    )
    picked = [0, 3, 11, 17, 20]
    examples = [
        {
            "prompt_ids": pairs.chosen[i].ids[: pairs.chosen[i].start],
            "chosen_ids": pairs.chosen[i].ids[pairs.chosen[i].start :],
            "rejected_ids": pairs.rejected[i].ids[pairs.rejected[i].start :],
        }
        for i in picked
    ]
    expected = trainer.compute_loss(policy.train(), trainer.data_collator(examples))
    theirs = trainer._metrics["train"]

    reference_2xP = log_probs_of(load_model(base_model.model), pairs, 8, pad_id=3)[:, picked]
    batch = batch_of(pairs, picked, pad_id=3) | {
        "reference_chosen": reference_2xP[0],
        "reference_rejected": reference_2xP[1],
    }
    ours = preference_loss(beta=0.3)(load_model(tmp_path / "policy"), batch)
    assert ours.num_targets == len(picked)
    assert float(ours.loss_sum.detach()) / len(picked) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert ours.metrics["margin"] == pytest.approx(theirs["rewards/margins"][0], abs=1e-5)
    assert ours.metrics["accuracy"] == pytest.approx(theirs["rewards/accuracies"][0], abs=1e-6)


def test_padding_and_company_change_nothing(pairs: Pairs, base_model: Any) -> None:
    model = load_model(base_model.model)
    alone = torch.cat([log_probs_of(model, pairs, 1, pad_id=3)], dim=1)
    together = log_probs_of(model, pairs, 40, pad_id=3)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)


def test_the_gradient_raises_the_chosen_answer(pairs: Pairs, base_model: Any) -> None:
    model = load_model(base_model.model)
    batch = batch_of(pairs, [1], pad_id=3)
    with torch.no_grad():
        before = answer_log_probs(model, batch)
    reference = {"reference_chosen": before[:1], "reference_rejected": before[1:]}
    preference_loss(0.1)(model, batch | reference).loss_sum.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.01 * parameter.grad)
        after = answer_log_probs(model, batch)
    assert (after[0] - before[0]) > (after[1] - before[1])


def test_scores_of_known_log_probs() -> None:
    completion = Completion([1, 5, 6, 7], 2)
    longer = Completion([1, 5, 6, 7, 8, 9], 2)
    pairs = Pairs(["a", "b", "c", "d"], ["x", "x", "y", "y"], [completion] * 4, [longer] * 4)
    policy = torch.tensor([[-2.0, -9.0, -4.0, -4.0], [-8.0, -8.0, -8.0, -8.0]])
    reference = torch.tensor([[-4.0, -4.0, -4.0, -4.0], [-8.0, -8.0, -8.0, -7.0]])
    score = score_pairs(policy, reference, pairs, beta=0.5)
    # gains over the reference: 2, -5, 0 (a tie) and 1
    assert score.margin == pytest.approx(0.5 * (2 - 5 + 0 + 1) / 4)
    assert (score.wins, score.accuracy) == (2.5, 0.625)
    assert score.num_chosen_likelier == 1  # per token -1 against -2; then -4.5, and twice -2 against -2
    low, high = score.interval
    assert low < 0.625 < high
    by_kind = score_by_kind(policy, reference, pairs, beta=0.5)
    assert {kind: found.wins for kind, found in by_kind.items()} == {"x": 1.0, "y": 1.5}


def test_stored_log_probs_are_computed_once(tmp_path: Path, pairs: Pairs) -> None:
    path = tmp_path / "reference.safetensors"
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.rand(2, len(pairs))

    first = stored_log_probs(path, pairs, compute)
    assert torch.equal(stored_log_probs(path, pairs, compute), first)
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:50])  # a copy that was cut short is made again
    stored_log_probs(path, pairs, compute)
    assert len(calls) == 2
