"""Log-probabilities against transformers, and what a step does to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.dpo.objectives import PairObjective
from stages.dpo.pairs import Pairs, batch_of, read_pairs
from stages.dpo.preference import (
    answer_log_probs,
    log_probs_of,
    stored_log_probs,
)
from stages.dpo.spec import DpoConfig
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
    PairObjective(DpoConfig())(model, batch | reference).loss_sum.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.01 * parameter.grad)
        after = answer_log_probs(model, batch)
    assert (after[0] - before[0]) > (after[1] - before[1])


def test_stored_log_probs_are_computed_once(tmp_path: Path, pairs: Pairs) -> None:
    path = tmp_path / "reference.safetensors"
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.rand(2, len(pairs))

    first = stored_log_probs(path, (2, len(pairs)), compute)
    assert torch.equal(stored_log_probs(path, (2, len(pairs)), compute), first)
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:50])  # a copy that was cut short is made again
    stored_log_probs(path, (2, len(pairs)), compute)
    assert len(calls) == 2
