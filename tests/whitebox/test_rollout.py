"""Rollouts against one-by-one decoding and a plain forward pass, whatever else is in the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.rollout import Rollout, Sampling, draw, roll_out

Make = Callable[..., CausalLM]
PROMPTS = [[1, 9, 30], [1, 7], [1, 22, 23, 24, 25, 26, 27, 28, 29], [1, 9, 30], [5], [1, 40, 41, 42]]
SEEDS = list(range(100, 100 + len(PROMPTS)))
KINDS = [
    {},
    {"sliding_window": 5, "qk_norm": False, "num_key_value_heads": 4},
    {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
]


def sample(
    model: CausalLM, picked: list[int] | None = None, temperature: float = 1.0, **options: object
) -> list[Rollout]:
    places = picked if picked is not None else list(range(len(PROMPTS)))
    settings: dict[str, object] = {"max_new_tokens": 24, "stop_ids": [], **options}
    sampling = Sampling(temperature, float(settings.pop("top_p", 1.0)))  # type: ignore[arg-type]
    chosen = [PROMPTS[i] for i in places]
    return roll_out(model, chosen, sampling=sampling, seeds=[SEEDS[i] for i in places], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", KINDS)
def test_greedy_rows_are_what_one_by_one_decoding_gives(make_model: Make, changes: dict[str, object]) -> None:
    model = make_model(**changes).eval()
    stop = generate(model, PROMPTS[0], max_new_tokens=24, stop_ids=[])[6]
    for prompt, found in zip(PROMPTS, sample(model, temperature=0.0, stop_ids=[stop]), strict=True):
        alone = generate(model, prompt, max_new_tokens=24, stop_ids=[stop])
        assert found.ids == [*alone, stop] if found.finished else found.ids == alone
        assert found.finished == (len(alone) < 24)
        assert all(found.is_sampled)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("changes", KINDS)
def test_log_probabilities_and_entropies_are_those_of_a_plain_forward(
    make_model: Make, changes: dict[str, object], temperature: float
) -> None:
    model = make_model(**changes).eval()
    for prompt, found in zip(PROMPTS, sample(model, temperature=temperature), strict=True):
        with torch.no_grad():
            logits_TxV = model(torch.tensor([prompt + found.ids]))[0, len(prompt) - 1 : -1] / temperature
        plain = torch.distributions.Categorical(logits=logits_TxV)
        expected = plain.log_prob(torch.tensor(found.ids))
        assert torch.allclose(torch.tensor(found.log_probs), expected, rtol=0, atol=1e-5)
        assert torch.allclose(torch.tensor(found.entropies), plain.entropy(), rtol=0, atol=1e-5)


def test_who_else_is_in_the_batch_changes_nothing(make_model: Make) -> None:
    model = make_model().eval()
    together = sample(model, stop_ids=[11, 12, 13])
    assert len({len(found.ids) for found in together}) > 2  # they end at different times
    for picked in ([0], [3, 1], [5, 4, 2], [2, 2]):
        for place, found in zip(picked, sample(model, picked, stop_ids=[11, 12, 13]), strict=True):
            assert found.ids == together[place].ids
            assert found.log_probs == pytest.approx(together[place].log_probs, abs=1e-5)


def test_the_same_prompt_with_other_seeds_is_another_sample(make_model: Make) -> None:
    found = sample(make_model().eval())
    assert found[0].ids != found[3].ids
    assert found[0].ids == sample(make_model().eval())[0].ids


def test_drawn_tokens_have_the_frequencies_of_the_softmax() -> None:
    logits_V = torch.tensor([0.5, -1.0, 2.0, 0.0])
    uniform_B = (torch.arange(10_000) + 0.5) / 10_000
    drawn = draw(logits_V.expand(10_000, 4), uniform_B, Sampling(2.0))[0]
    shares = torch.bincount(drawn, minlength=4) / 10_000
    assert torch.allclose(shares, (logits_V / 2.0).softmax(0), atol=2e-4)
    kept = Counter(draw(logits_V.expand(10_000, 4), uniform_B, Sampling(1.0, top_p=0.8))[0].tolist())
    assert set(kept) == {0, 2}  # 0.71 and 0.16: the first does not reach 0.8 alone
    assert draw(logits_V[None], torch.tensor([0.99]), Sampling(1.0, top_p=0.1))[0].tolist() == [2]


def test_what_is_put_in_is_read_and_not_learned(make_model: Make) -> None:
    model = make_model().eval()
    stop = sample(model, temperature=0.0)[0].ids[2]
    result = [50, 51, 52]
    calls: list[tuple[int, int]] = []

    def answer(row: int, ids: list[int]) -> list[int]:
        is_first = row not in [asked for asked, _ in calls]
        calls.append((row, len(ids)))
        return result if row in (0, 3) and is_first else []

    found = sample(model, temperature=0.0, stop_ids=[stop], on_stop=answer)
    first = found[0]
    head = generate(model, PROMPTS[0], max_new_tokens=24, stop_ids=[stop])
    tail = generate(
        model, [*PROMPTS[0], *head, stop, *result], max_new_tokens=24 - len(head) - 4, stop_ids=[stop]
    )
    assert first.ids[: len(head) + 4 + len(tail)] == [*head, stop, *result, *tail]
    assert [i for i, own in enumerate(first.is_sampled) if not own] == list(
        range(len(head) + 1, len(head) + 4)
    )
    assert first.log_probs[len(head) + 1 : len(head) + 4] == [0.0, 0.0, 0.0]
    assert first.ids == found[3].ids
    assert (0, len(head) + 1) in calls
    assert first.num_sampled == len(first.ids) - 3
    # Rows that nothing was put into are what they are without the others.
    assert found[1].ids == sample(model, [1], temperature=0.0, stop_ids=[stop])[0].ids


def test_a_row_ends_where_its_tokens_or_the_context_run_out(make_model: Make) -> None:
    model = make_model().eval()  # 48 positions
    found = sample(model, max_new_tokens=500)
    assert [len(p) + len(f.ids) for p, f in zip(PROMPTS, found, strict=True)] == [48] * len(PROMPTS)
    assert not any(f.finished for f in found)
    assert [len(f.ids) for f in sample(model, max_new_tokens=1)] == [1] * len(PROMPTS)


def test_what_cannot_be_is_refused(make_model: Make) -> None:
    model = make_model()
    settings = {"max_new_tokens": 4, "stop_ids": [], "sampling": Sampling()}
    assert roll_out(model, [], seeds=[], **settings) == []  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompts of 0 to 3 tokens; expected 1 to 47"):
        roll_out(model, [[], [1, 2, 3]], seeds=[1, 2], **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        roll_out(model, [[1], [2]], seeds=[1], **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        sample(model, max_new_tokens=0)
    with pytest.raises(ValueError, match="top_p 0"):
        Sampling(1.0, 0.0)
