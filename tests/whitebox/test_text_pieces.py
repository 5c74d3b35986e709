"""Attention text by text, and a last layer for the tokens that are read, against a mask over all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.whitebox import model as whitebox_model
from stages.whitebox import text_pieces
from stages.whitebox.config import ModelConfig
from stages.whitebox.losses import IGNORED, cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.text_pieces import Piece, Pieces, pieces_of


def small_model(**changes: Any) -> CausalLM:
    torch.manual_seed(3)
    model = CausalLM(ModelConfig(97, 32, 64, 2, 4, 2, 8, max_position_embeddings=64, **changes))
    with torch.no_grad():  # larger weights, so that a token that sees too much is not lost in rounding
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


def packed() -> dict[str, Tensor]:
    """Two rows of several texts, with padding at the end; some tokens have a target."""
    generator = torch.Generator().manual_seed(0)
    lengths = [[5, 1, 9, 4, 5], [13, 2, 7, 2]]
    documents = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    ids = torch.randint(4, 97, (2, 24), generator=generator)
    counted = torch.rand(2, 24, generator=generator) < 0.4
    targets = torch.randint(4, 97, (2, 24), generator=generator).masked_fill(~counted, IGNORED)
    return {"ids": ids, "positions": positions, "documents": documents, "targets": targets}


def gradients(model: CausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name
        )


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 3}, {"attention_bias": True, "qk_norm": False}])
def test_loss_and_gradients_are_those_of_one_mask_over_the_row(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, model = packed(), small_model(**changes)
    targets_M = batch["targets"].flatten()
    wanted_R = (targets_M != IGNORED).nonzero()[:, 0]

    def loss_of(targets: Tensor, wanted_R: Tensor | None) -> Tensor:
        hidden = model.hidden_states(batch["ids"], batch["positions"], batch["documents"], wanted_R=wanted_R)
        return cross_entropy_sum(hidden, model.output_weight(), targets)[0]

    whole, wanted = loss_of(batch["targets"], None), loss_of(targets_M[wanted_R], wanted_R)
    found = [gradients(model, whole), gradients(model, wanted)]
    monkeypatch.setattr(whitebox_model, "pieces_of", lambda *_: None)
    expected = loss_of(batch["targets"], None)
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(wanted, expected, rtol=1e-6, atol=0)
    plain = gradients(model, expected)
    for each in found:
        assert_same(each, plain)


@pytest.mark.parametrize("short_keys", [0, 6, 64])
def test_the_same_in_bfloat16_with_texts_of_which_nothing_is_wanted(
    short_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_pieces, "SHORT_KEYS", short_keys)
    batch, model = packed(), small_model()
    batch["targets"][0, :6] = IGNORED  # all of the first two texts
    targets_M = batch["targets"].flatten()
    wanted_R = (targets_M != IGNORED).nonzero()[:, 0]
    arguments = (batch["ids"], batch["positions"], batch["documents"])
    exact_MxD = model.hidden_states(*arguments).flatten(0, 1)
    exact = gradients(model, cross_entropy_sum(exact_MxD[None], model.output_weight(), targets_M[None])[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        some_1xRxD = model.hidden_states(*arguments, wanted_R=wanted_R)
        loss = cross_entropy_sum(some_1xRxD, model.output_weight(), targets_M[None, wanted_R])[0]
    torch.testing.assert_close(some_1xRxD[0], exact_MxD[wanted_R], rtol=0.05, atol=0.05)
    for name, gradient in gradients(model, loss).items():
        assert float((gradient - exact[name]).norm() / exact[name].norm()) < 0.05, name


def test_a_router_sees_all_tokens_whatever_is_wanted() -> None:
    model = small_model(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16).train()
    batch, wanted_R = packed(), torch.tensor([3, 4, 30])
    arguments = (batch["ids"], batch["positions"], batch["documents"])
    all_BxTxD, expected = model.hidden_states(*arguments), model.router_loss()
    some_1xRxD = model.hidden_states(*arguments, wanted_R=wanted_R)
    torch.testing.assert_close(some_1xRxD[0], all_BxTxD.flatten(0, 1)[wanted_R])
    torch.testing.assert_close(model.router_loss(), expected)


def test_nothing_wanted_is_nothing_computed() -> None:
    batch, model = packed(), small_model()
    hidden = model.hidden_states(
        batch["ids"], batch["positions"], batch["documents"], wanted_R=torch.tensor([], dtype=torch.int64)
    )
    assert hidden.shape == (1, 0, 32)


def test_documents_in_several_places_keep_the_mask() -> None:
    assert pieces_of(torch.tensor([[1, 1, 2, 2, 2, 0]])) == Pieces((Piece(2), Piece(3), Piece(1)))
    assert pieces_of(torch.tensor([[1, 2, 1]])) is None


def test_a_piece_goes_on_from_the_beginning_of_another() -> None:
    """A trunk of four tokens and two branches: each branch equals the whole text by itself."""
    model = small_model()
    ids = torch.tensor([[7, 8, 9, 10, 20, 21, 30, 31, 32]])
    pieces = Pieces((Piece(6), Piece(3, parent=0, num_shared=4)))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5, 6]])
    together = model.hidden_states(ids, positions, pieces=pieces)[0]
    torch.testing.assert_close(together[:6], model.hidden_states(ids[:, :6])[0])
    other = torch.tensor([[7, 8, 9, 10, 30, 31, 32]])
    torch.testing.assert_close(together[6:], model.hidden_states(other)[0, 4:])
