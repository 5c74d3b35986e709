"""Each method through the stage: it runs, learns, stops and goes on with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts import CHECKPOINT, PREFERENCES
from data_contracts.tables import write_part
from stages.dpo.pairs import Completion, Pairs, SingleAnswer
from stages.dpo.single_answers import AnswerBatches, answers_of, with_couples
from stages.runtime.errors import StopRequested
from stages.runtime.store import file_sha256
from tests.stages.dpo.conftest import pair_row

METHODS = ("ipo", "orpo", "simpo", "kto", "reward")
SHORT: dict[str, Any] = {"epochs": 2.0, "evaluations": 1}


def weights(tuned: Any, method: str) -> str:
    folder = tuned.outputs["model"] / ("reward_model" if method == "reward" else ".")
    return file_sha256(folder / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_with_the_same_bits(
    method: str, run_dpo: Callable[..., Any], tmp_path: Path, base_model: Any
) -> None:
    whole = run_dpo(method=method, **SHORT)
    with pytest.raises(StopRequested, match="stopped after step 4"):
        run_dpo(work=tmp_path / "work", stop_after=4, method=method, **SHORT)
    resumed = run_dpo(work=tmp_path / "work", method=method, **SHORT)
    assert any("going on after step 4" in event.get("message", "") for event in resumed.events)
    assert weights(resumed, method) == weights(whole, method)
    assert weights(whole, method) != file_sha256(base_model.model / "model.safetensors")
    assert resumed.metrics["validation_margin"] == whole.metrics["validation_margin"]
    has_reference = (tmp_path / "work/reference-train.safetensors").is_file()
    assert has_reference == (method not in ("orpo", "simpo", "reward"))
    assert CHECKPOINT.check(whole.outputs["model"]) == []


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method: str, run_dpo: Callable[..., Any]) -> None:
    beta = 5.0 if method == "orpo" else "auto"  # else its first task is to learn the language
    metrics = run_dpo(method=method, beta=beta, epochs=8.0, evaluations=1).metrics
    assert metrics["validation_accuracy_low"] > 0.5
    before = 0.0 if method in ("ipo", "kto", "reward") else metrics["sft_validation_margin"]
    assert metrics["validation_margin"] > before


@pytest.fixture(scope="session")
def single_answers_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One answer of each pair: good ones and bad ones by turns, on both sides of the split."""
    folder = tmp_path_factory.mktemp("singles")
    rows = [pair_row(number) for number in range(80)]
    for row, side in zip(
        rows, ("chosen", "chosen", "rejected", "rejected", "rejected", "chosen") * 14, strict=False
    ):
        row[side], row["kind"] = None, "own"
    write_part(folder, PREFERENCES, rows)
    return folder


def test_kto_learns_from_single_answers_and_is_judged_by_couples(
    run_dpo: Callable[..., Any], single_answers_part: Path
) -> None:
    found = run_dpo(inputs={"preferences": single_answers_part}, method="kto", epochs=8.0)
    assert found.metrics["num_validation_pairs"] >= 15
    assert found.metrics["validation_accuracy_low"] > 0.5
    tables = {event["name"]: event for event in found.events if event["event"] == "table"}
    assert [row[0] for row in tables["dpo_by_kind"]["rows"]] == ["single answers"]


def test_derived_pairs_make_way_for_single_answers_of_the_users_own(
    run_dpo: Callable[..., Any], preferences_part: Path, single_answers_part: Path, tmp_path: Path
) -> None:
    from data_contracts.tables import read_rows

    derived = [{**row, "pair_id": f"d{row['pair_id']}"} for row in read_rows(preferences_part)]
    write_part(tmp_path, PREFERENCES, [*read_rows(single_answers_part), *derived])
    found = run_dpo(inputs={"preferences": tmp_path}, method="kto", **SHORT)
    said = [event.get("message", "") for event in found.events]
    assert "80 derived pairs are left out: there are answers of your own" in said
    assert "answers without a partner: 80" in said
    other = run_dpo(inputs={"preferences": tmp_path}, method="ipo", **SHORT)
    assert "80 answers are without a partner: left out, [dpo] method = 'kto' takes them" in [
        event["message"] for event in other.events if event.get("level") == "warning"
    ]
    assert other.metrics["num_validation_pairs"] == 40


def test_the_reward_model_opens_in_transformers_with_the_same_scores(
    run_dpo: Callable[..., Any], base_model: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    found = run_dpo(method="reward", epochs=8.0, evaluations=1, precision="float32")
    folder = found.outputs["model"]
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "reward_model", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward_model")
    margins, scores = [], []
    for number in [n for n in range(80) if n % 4 in (0, 1)]:
        row = pair_row(number)
        both = [
            tokenizer.apply_chat_template([*row["prompt"], row[side]], tokenize=False).rstrip("\n")
            for side in ("chosen", "rejected")
        ]
        with torch.no_grad():
            ids = tokenizer(both, return_tensors="pt", padding=True, add_special_tokens=False)
            chosen, rejected = judge(input_ids=ids["input_ids"]).logits[:, 0].tolist()
        margins.append(chosen - rejected)
        scores.append(chosen)
    assert found.metrics["validation_chosen_score"] == pytest.approx(sum(scores) / 40, abs=1e-4)
    assert found.metrics["validation_margin"] == pytest.approx(sum(margins) / 40, abs=1e-4)
    assert found.metrics["validation_accuracy"] == sum(margin > 0 for margin in margins) / 40
    (table,) = (event for event in found.events if event["event"] == "table")
    rows = {row[0]: row[1:] for row in table["rows"]}
    lengths = [lengths_of(row, tokenizer) for row in map(pair_row, range(80)) if row["split"] == "validation"]
    assert rows["tokens of a chosen answer"] == [round(sum(pair[0] for pair in lengths) / 40, 1)] * 2
    longer = sum((chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in lengths) / 40
    assert found.metrics["longer_answer_accuracy"] == longer
    assert rows["bits per byte of documents"] == [round(found.metrics["validation_bits_per_byte"], 4)] * 2
    # The model is still an assistant: the one that came.
    assistant = AutoModelForCausalLM.from_pretrained(folder)
    came = AutoModelForCausalLM.from_pretrained(base_model.model)
    for name, tensor in came.state_dict().items():
        assert torch.equal(assistant.state_dict()[name], tensor), name


def lengths_of(row: dict[str, Any], tokenizer: Any) -> tuple[int, int]:
    """Tokens of the two answers, as the published tokenizer counts them."""
    asked = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    both = [
        tokenizer.apply_chat_template([*row["prompt"], row[side]], tokenize=False).rstrip("\n")
        for side in ("chosen", "rejected")
    ]
    start, chosen, rejected = map(len, tokenizer([asked, *both], add_special_tokens=False)["input_ids"])
    return chosen - start, rejected - start


def many_answers() -> Pairs:
    """Two pairs of one prompt, one of another, and two single answers."""
    said = [
        Completion([1, prompt, 9, answer], 2)
        for prompt, answer in ((5, 10), (5, 11), (5, 12), (5, 13), (6, 14), (6, 15))
    ]
    singles = [SingleAnswer("g", Completion([1, 7, 9, 9, 9, 16], 2), True)]
    singles += [SingleAnswer("b", Completion([1, 8, 17], 2), False)]
    return Pairs(["p", "q", "r"], ["own"] * 3, said[0::2], said[1::2], singles=singles)


def test_pairs_are_two_answers_each_and_prompts_get_answers_of_others() -> None:
    answers = answers_of(many_answers())
    assert [answer.ids[-1] for answer in answers.completions] == [10, 11, 12, 13, 14, 15, 16, 17]
    assert answers.is_desirable == [True, False, True, False, True, False, True, False]
    for own, other in zip(answers.completions, answers.mismatched, strict=True):
        assert other.ids[:2] == own.ids[:2]
        assert len(other.ids) <= 6  # no longer than the longest completion
    assert [answer.ids[-1] for answer in answers.mismatched] == [14, 15, 14, 15, 12, 13, 17, 16]


def test_couples_use_each_answer_once() -> None:
    found = with_couples(many_answers())
    assert (found.ids, found.kinds) == (["p", "q", "r", "g"], [*["own"] * 3, "single answers"])
    assert (found.chosen[-1].ids[-1], found.rejected[-1].ids[-1]) == (16, 17)
    assert found.singles == []


@pytest.mark.parametrize(("micro", "size"), [(4, 4), (3, 2), (1, 1)])
def test_an_update_has_one_baseline_whatever_fits_at_once(micro: int, size: int) -> None:
    answers, reference = answers_of(many_answers()), torch.arange(16.0).view(2, 8)
    batches = AnswerBatches(answers, reference, 4, 3, seed=0, micro_batch_answers=micro)
    for _ in range(4):
        parts = [batches.next_batch() for _ in range(4 // size)]
        own = torch.cat([part["reference"] for part in parts])
        assert torch.equal(parts[0]["mismatched_reference"], own + 8)
        assert len(parts[0]["mismatched_ids"]) == 4
        assert all("mismatched_ids" not in part for part in parts[1:])
