"""The wired circuit really copies: without any training, and only where there is something to copy."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stages.whitebox.config import ModelConfig
from stages.whitebox.induction import can_wire, wire_induction_circuit
from stages.whitebox.model import CausalLM

CONFIG = ModelConfig.from_depth(4, vocab_size=512, max_position_embeddings=128)


def make_model(wired: bool) -> CausalLM:
    torch.manual_seed(0)
    model = CausalLM(CONFIG)
    if wired:
        wire_induction_circuit(model)
    return model.eval()


def repeated_sequences(rows: int = 16, length: int = 32) -> torch.Tensor:
    """Random tokens without repeats, then the same again: only copying can predict the second half."""
    generator = torch.Generator().manual_seed(1)
    first = torch.stack(
        [torch.randperm(CONFIG.vocab_size, generator=generator)[:length] for _ in range(rows)]
    )
    return torch.cat([first, first], dim=1)


@torch.no_grad()
def gain_in_second_half(model: CausalLM) -> float:
    """Nats by which the second half is better predicted than the first."""
    ids = repeated_sequences()
    logp = model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    half = ids.shape[1] // 2
    return float(logp[:, half:].mean() - logp[:, : half - 1].mean())


def test_what_followed_last_time_becomes_likely() -> None:
    assert abs(gain_in_second_half(make_model(wired=False))) < 0.05
    assert gain_in_second_half(make_model(wired=True)) > 0.5


@torch.no_grad()
def test_copying_is_the_best_guess_without_any_training() -> None:
    ids = repeated_sequences()
    half = ids.shape[1] // 2
    guesses = []
    for wired in (False, True):
        logits = make_model(wired)(ids)[:, half:-1]
        # An untrained tied model repeats the token that it stands on, so that one does not count.
        logits = logits.scatter(2, ids[:, half:-1, None], float("-inf"))
        guesses.append(float((logits.argmax(-1) == ids[:, half + 1 :]).float().mean()))
    assert guesses[0] < 0.05
    assert guesses[1] > 0.3


def test_the_same_seed_wires_the_same_weights() -> None:
    one, other = make_model(wired=True), make_model(wired=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"hidden_size": 32}, {"qk_norm": False}])
def test_models_that_are_too_small_are_refused(change: dict[str, int]) -> None:
    config = dataclasses.replace(CONFIG, **change)
    assert not can_wire(config)
    with pytest.raises(ValueError, match="an induction circuit needs"):
        wire_induction_circuit(CausalLM(config))
