"""Pairs as tokens: where the answer begins, how batches are laid out, in which order they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts import PREFERENCES
from data_contracts.tables import read_rows, write_part
from stages.dpo.pairs import Completion, PairBatches, Pairs, SingleAnswer, batch_of, complete, read_pairs
from stages.dpo.setup import updates_on, with_micro_batches
from stages.dpo.spec import DpoConfig
from stages.whitebox.chat_format import render


def test_a_completion_is_the_answer_and_its_end(base_model: Any) -> None:
    tokenizer = base_model.tokenizer
    prompt = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "An earlier answer is no target."},
        {"role": "user", "content": "Really?"},
    ]
    found = complete(prompt, {"role": "assistant", "content": "The keeper."}, tokenizer)
    end = tokenizer.special_id("<|im_end|>")
    assert found.ids[found.start :] == [*tokenizer.encode("The keeper."), end]
    assert found.ids[: found.start] == render(prompt, tokenizer, add_generation_prompt=True).ids


def test_reasoning_and_calls_are_part_of_an_answer(base_model: Any, tmp_path: Path) -> None:
    tokenizer = base_model.tokenizer
    tool = {"type": "function", "function": {"name": "calculator"}}
    call = {"id": "c1", "name": "calculator", "arguments": '{"expression": "2+3"}'}
    answers = [{"role": "assistant", "content": "", "reasoning": "Sum.", "tool_calls": [call]}]
    answers.append({"role": "assistant", "content": "6."})
    row = {
        "source": "s",
        "kind": "own",
        "tools": json.dumps([tool]),
        "prompt": [{"role": "user", "content": "2+3?"}],
        "chosen": answers[0],
        "rejected": answers[1],
    }
    splits = ("train", "validation")
    write_part(tmp_path, PREFERENCES, [{**row, "pair_id": name, "split": name} for name in splits])
    pairs = read_pairs(tmp_path, tokenizer, 400, 10)["train"]
    told = "You may call these functions:\n<tools>\n" + json.dumps(tool) + "\n</tools>"
    assert told in tokenizer.decode(pairs.chosen[0].ids[: pairs.chosen[0].start])
    assert tokenizer.decode(pairs.chosen[0].ids[pairs.chosen[0].start :]) == (
        '<think>\nSum.\n</think>{"name": "calculator", "arguments": {"expression": "2+3"}}'
    )
    assert tokenizer.decode(pairs.rejected[0].ids[pairs.rejected[0].start :]) == "6."


def test_layout_of_a_batch() -> None:
    pairs = Pairs(
        chosen=[Completion([1, 7, 8, 9], 2), Completion([1, 7, 5], 2)],
        rejected=[Completion([1, 7, 6], 2), Completion([1, 7, 4, 4, 4], 2)],
    )
    batch = batch_of(pairs, [1, 0], pad_id=3)
    assert batch["ids"].tolist() == [[1, 7, 5, 3, 3], [1, 7, 8, 9, 3], [1, 7, 4, 4, 4], [1, 7, 6, 3, 3]]
    assert batch["targets"].tolist() == [
        [-100, 5, -100, -100, -100],
        [-100, 8, 9, -100, -100],
        [-100, 4, 4, 4, -100],
        [-100, 6, -100, -100, -100],
    ]


def test_reading_draws_by_hash(preferences_part: Path, base_model: Any) -> None:
    pairs = read_pairs(preferences_part, base_model.tokenizer, 128, 1000)
    assert (len(pairs["train"]), len(pairs["validation"])) == (40, 40)
    fewer = read_pairs(preferences_part, base_model.tokenizer, 128, 10)["train"]
    assert len(fewer) == 10
    assert set(fewer.ids) < set(pairs["train"].ids)
    assert pairs["validation"].head(2).ids == ["p000", "p077"]


@pytest.mark.parametrize(
    ("method", "pairs", "singles"), [("dpo", 10, 20), ("kto", 0, 10)], ids=["pairs alone", "single answers"]
)
def test_only_what_a_method_can_use_is_drawn(
    method: str, pairs: int, singles: int, preferences_part: Path, base_model: Any, tmp_path: Path
) -> None:
    rows = [{**row, "kind": "truncated"} for row in read_rows(preferences_part) if row["split"] == "train"]
    single = [{**row, "pair_id": f"s{i}", "kind": "own", "rejected": None} for i, row in enumerate(rows[:20])]
    write_part(tmp_path, PREFERENCES, rows + single)
    found = read_pairs(tmp_path, base_model.tokenizer, 128, 10, method)["train"]
    of_method = found.of_kind("own") if method == "kto" else found
    assert (len(of_method), len(found.singles)) == (pairs, singles)


def many_pairs(count: int) -> Pairs:
    lengths = torch.randint(4, 30, (2, count), generator=torch.Generator().manual_seed(0)).tolist()
    chosen, rejected = ([Completion([1] * n, 2) for n in side] for side in lengths)
    return Pairs([f"p{i}" for i in range(count)], ["k"] * count, chosen, rejected)


@pytest.mark.parametrize("count", [50, 48, 9])
def test_every_pair_in_every_epoch_with_its_own_reference(count: int) -> None:
    pairs = many_pairs(count)
    reference = torch.arange(2.0 * count).view(2, count)
    batches = PairBatches(pairs, reference, 8, 3, seed=0)
    for _ in range(2):
        drawn = [batches.next_batch()["reference_chosen"] for _ in range(batches.updates_per_epoch)]
        seen = torch.cat(drawn).tolist()
        assert set(seen) == set(range(count)) and len(seen) < count + 8
    batch = batches.next_batch()
    assert (batch["reference_rejected"] - batch["reference_chosen"]).tolist() == [float(count)] * 8


def test_batches_of_similar_length_save_padding() -> None:
    pairs = many_pairs(400)
    batches = PairBatches(pairs, torch.zeros(2, 400), 8, 3, seed=0)
    widths = [batches.next_batch()["ids"].shape[1] for _ in range(50)]
    assert sum(widths) / 50 < 24  # any eight pairs at random are about 29 wide


def test_a_saved_place_goes_on_the_same() -> None:
    first, second = (PairBatches(many_pairs(50), torch.zeros(2, 50), 8, 3, seed=1) for _ in range(2))
    for _ in range(9):
        first.next_batch()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(first.next_batch()["ids"], second.next_batch()["ids"]) for _ in range(9))
    with pytest.raises(ValueError, match="num_pairs 50, these have 40"):
        PairBatches(many_pairs(40), torch.zeros(2, 40), 8, 3, seed=1).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("num_pairs", "epochs", "expected"),
    [(10, "auto", 3), (446, "auto", 40), (990, "auto", 40), (2854, "auto", 90), (446, 2.0, 28), (64, 0.1, 1)],
)
def test_few_pairs_are_seen_more_often(num_pairs: int, epochs: Any, expected: int) -> None:
    said = [Completion([1, 2, 3], 2)] * num_pairs
    batches = PairBatches(Pairs(chosen=said, rejected=said), None, 32, pad_id=0, seed=0)
    told: list[str] = []
    assert updates_on(DpoConfig(epochs=epochs), batches, told.append) == expected
    assert told[0].startswith(f"{expected} updates of {min(32, num_pairs)} pairs: ")


@pytest.mark.parametrize(("micro", "size"), [(32, 12), (12, 12), (11, 6), (5, 4), (1, 1)])
def test_an_update_is_the_same_pairs_whatever_fits_at_once(micro: int, size: int) -> None:
    reference = torch.arange(100.0).view(2, 50)
    whole = PairBatches(many_pairs(50), reference, 12, 3, seed=0)
    parts = PairBatches(many_pairs(50), reference, 12, 3, seed=0, micro_batch_pairs=micro)
    assert (parts.batch_size, parts.batches_per_update) == (size, 12 // size)
    for _ in range(9):
        expected = whole.next_batch()["reference_chosen"]
        found = torch.cat([parts.next_batch()["reference_chosen"] for _ in range(parts.batches_per_update)])
        assert torch.equal(found, expected)


def test_fewer_pairs_than_a_batch_still_train() -> None:
    batches = PairBatches(many_pairs(3), torch.zeros(2, 3), 8, 3, seed=0)
    assert batches.next_batch()["ids"].shape[0] == 6


@pytest.mark.parametrize(
    ("lengths", "singles", "expected"),
    [([100], [], 16), ([1000], [], 4), ([1000, 3000], [], 2), ([9000], [], 1), ([1000], [3000, 3000], 1)],
)
def test_long_pairs_are_fewer_at_once(lengths: list[int], singles: list[int], expected: int) -> None:
    """A pair of N tokens here has a prompt of N / 5 and answers of 2 N / 5."""
    answers = [Completion([1] * (3 * length // 5), length // 5) for length in lengths]
    pairs = Pairs(chosen=answers, rejected=answers)
    pairs.singles = [SingleAnswer("s", Completion([1] * (length // 2), 5), True) for length in singles]
    assert with_micro_batches(DpoConfig(), pairs).micro_batch_pairs == expected
    assert with_micro_batches(DpoConfig(micro_batch_pairs=7), pairs).micro_batch_pairs == 7


def test_answers_that_are_still_to_be_sampled_come_by_a_fixed_number() -> None:
    assert with_micro_batches(DpoConfig(method="grpo")).micro_batch_pairs == 16
    assert with_micro_batches(DpoConfig(), Pairs()).micro_batch_pairs == 16
