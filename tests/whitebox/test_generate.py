"""Decoding: greedy is arg max of full forwards, sampling keeps its promises, constraints hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.whitebox.generate import choose, generate, stream
from stages.whitebox.model import CausalLM

Make = Callable[..., CausalLM]
PROMPT = [1, 9, 30]


def greedy_by_full_forwards(model: CausalLM, count: int) -> list[int]:
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_greedy_is_the_argmax_of_every_full_forward(make_model: Make) -> None:
    model = make_model()
    assert generate(model, PROMPT, max_new_tokens=20, stop_ids=[]) == greedy_by_full_forwards(model, 20)


def test_it_ends_before_the_stop_token(make_model: Make) -> None:
    model = make_model()
    tokens = greedy_by_full_forwards(model, 12)
    stop = tokens[7]
    assert generate(model, PROMPT, max_new_tokens=12, stop_ids=[stop]) == tokens[: tokens.index(stop)]


def test_it_ends_where_the_context_is_full(make_model: Make) -> None:
    model = make_model()
    assert len(generate(model, PROMPT, max_new_tokens=500, stop_ids=[])) == 48 - len(PROMPT)
    assert generate(model, PROMPT, max_new_tokens=0, stop_ids=[]) == []


def test_a_seed_gives_the_same_text_and_leaves_other_randomness_alone(make_model: Make) -> None:
    model = make_model()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    texts = [
        generate(model, PROMPT, max_new_tokens=20, stop_ids=[], temperature=1.0, seed=s) for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def test_streaming_gives_the_same_tokens(make_model: Make) -> None:
    model = make_model()
    pieces = list(stream(model, PROMPT, max_new_tokens=9, stop_ids=[]))
    assert pieces == generate(model, PROMPT, max_new_tokens=9, stop_ids=[])


def drawn(logits: list[float], **options: float | int | None) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
    return {choose(torch.tensor(logits), generator=generator, **settings) for _ in range(200)}


def test_top_k_and_top_p_draw_from_the_likely_ones_only() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert drawn(logits) == {0, 1, 2, 3}
    assert drawn(logits, top_k=2) == {0, 1}
    assert drawn(logits, top_p=0.5) == {0}
    assert drawn(logits, top_p=0.51) == {0, 1}
    assert drawn(logits, top_k=99, top_p=1.0) == {0, 1, 2, 3}
    assert drawn(logits, temperature=0.0) == {0}


class OddOnly:
    """Allows odd ids and notes what was taken."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed_V(self) -> Tensor | None:
        return torch.arange(61) % 2 == 1

    def accept(self, token_id: int) -> None:
        self.taken.append(token_id)


def test_a_constraint_holds_and_is_told(make_model: Make) -> None:
    constraint = OddOnly()
    tokens = generate(make_model(), PROMPT, max_new_tokens=15, stop_ids=[], constraint=constraint)
    assert tokens == constraint.taken
    assert all(token % 2 == 1 for token in tokens)


def test_a_constraint_without_a_way_out_is_an_error() -> None:
    class Nothing(OddOnly):
        def allowed_V(self) -> Tensor | None:
            return torch.zeros(61, dtype=torch.bool)

    with pytest.raises(ValueError, match="allows no token"):
        choose(torch.zeros(61), 0.0, None, None, torch.Generator(), Nothing())


@pytest.mark.parametrize(
    ("prompt", "temperature", "message"),
    [
        ([], 0.0, "no tokens"),
        ([1] * 48, 0.0, "48 tokens and the model's context 48"),
        ([1], -1.0, "temperature is -1"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    make_model: Make, prompt: list[int], temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(make_model(), prompt, max_new_tokens=3, stop_ids=[], temperature=temperature)
