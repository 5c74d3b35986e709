"""Multiple choice: scores equal to reading every choice on its own, and to lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.tokenizer.hugging_face import tokenizer_json
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.chat_format import render
from stages.whitebox.checkpoint import save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM
from stages.whitebox.multiple_choice import (
    Prompt,
    Question,
    best_constant,
    chance,
    chat_prompt,
    plain_prompt,
    predict,
    score_choices,
)
from stages.whitebox.tokenizer import Tokenizer

QUESTIONS = [
    Question("a", "lamps", "What does the keeper light?", ("the lamp", "a boat", "the sea itself", "tea"), 0),
    Question("b", "lamps", "What is counted?", ("boats", "boats and lamps, every evening"), 1),
    Question("c", "lamps", "Who keeps it?", ("é", "🚢 and 灯塔", "nobody", "a keeper"), 3),
    Question("d", "lamps", "What does the keeper write?", ("a log", "two letters", "x = 1\n", " spaced"), 1),
    Question("e", "lamps", "When?", ("at noon", "at night", "never", "always"), 1),
]


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> Tokenizer:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    return Tokenizer(train_sentencepiece([text], 700, 0.9995))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> CausalLM:
    torch.manual_seed(0)
    model = CausalLM(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=96,
        )
    ).eval()
    for parameter in model.parameters():  # decided opinions, so that scores differ
        parameter.data.mul_(6.0 if parameter.ndim > 1 else 1.0)
    return model


def score_alone(model: CausalLM, context: list[int], choice: list[int]) -> float:
    """The definition: read everything at once, sum the log-probabilities of the choice's tokens."""
    ids = torch.tensor([context + choice])
    with torch.no_grad():
        logp = model(ids[:, :-1])[0].double().log_softmax(dim=-1)
    places = torch.arange(len(context) - 1, len(context) + len(choice) - 1)
    return float(logp[places, torch.tensor(choice)].sum())


def test_scores_are_those_of_reading_each_choice_alone(model: CausalLM, tokenizer: Tokenizer) -> None:
    prompts = [make(q, tokenizer) for make in (plain_prompt, chat_prompt) for q in QUESTIONS]
    for prompt, scores in zip(prompts, score_choices(model, prompts), strict=True):
        expected = [score_alone(model, list(prompt.context_ids), list(ids)) for ids in prompt.choice_ids]
        assert scores == pytest.approx(expected, abs=1e-4)


def test_batching_does_not_change_scores_or_their_order(model: CausalLM, tokenizer: Tokenizer) -> None:
    prompts = [plain_prompt(question, tokenizer) for question in QUESTIONS]
    together, done = score_choices(model, prompts), []
    apart = score_choices(model, prompts, max_rows=1, on_scored=lambda *counts: done.append(counts))
    for one, other in zip(together, apart, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert done[-1] == (5, 5) and len(done) == 5
    backwards = score_choices(model, prompts[::-1])[::-1]
    assert all(np.array_equal(one, other) for one, other in zip(together, backwards, strict=True))


def test_choices_of_one_token_need_only_the_context(model: CausalLM) -> None:
    prompts = [Prompt((1, 20, 21), ((30,), (31,))), Prompt((1, 22, 23), ((32,), (33,), (34,)))]
    for prompt, scores in zip(prompts, score_choices(model, prompts), strict=True):
        assert scores == pytest.approx(
            [score_alone(model, list(prompt.context_ids), list(ids)) for ids in prompt.choice_ids], abs=1e-5
        )


def test_a_long_question_loses_its_beginning(model: CausalLM) -> None:
    context, choice = tuple(range(5, 205)), (7, 8, 9)
    (scores,) = score_choices(model, [Prompt(context, (choice, (40,)))])
    kept = list(context[-(96 - 2) :])
    expected = [score_alone(model, kept, list(choice)), score_alone(model, kept, [40])]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_refuses_empty_and_endless_choices(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="a choice has no tokens"):
        score_choices(model, [Prompt((1, 2), ((3,), ()))])
    with pytest.raises(ValueError, match="a choice of 97 tokens does not fit a model of 96"):
        score_choices(model, [Prompt((1, 2), ((3,) * 97,))])


def test_metrics_divide_by_characters_or_bytes() -> None:
    choices = ("ab", "abcdef", "灯塔灯")
    scores = np.array([-4.0, -6.0, -5.0])
    assert predict(scores, choices, "acc") == 0
    assert predict(scores, choices, "acc_norm") == 1
    assert predict(scores, choices, "acc_bytes") == 2
    assert predict(np.array([-1.0, -1.0]), ("a", "b"), "acc") == 0


def test_baselines_need_no_model() -> None:
    assert chance(QUESTIONS) == pytest.approx((4 * 0.25 + 0.5) / 5)
    assert best_constant(QUESTIONS) == pytest.approx(3 / 5)


def test_chat_prompt_continues_as_training_saw_it(tokenizer: Tokenizer) -> None:
    question = QUESTIONS[0]
    prompt = chat_prompt(question, tokenizer)
    for choice, ids in zip(question.choices, prompt.choice_ids, strict=True):
        turns = [{"role": "user", "content": question.question}, {"role": "assistant", "content": choice}]
        trained = render(turns, tokenizer).ids
        assert trained[: len(prompt.context_ids) + len(ids)] == [*prompt.context_ids, *ids]


def test_lm_evaluation_harness_gives_the_same_sums_and_accuracies(
    model: CausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The oracle: lm-eval's own task code and its Hugging Face model, on what we save for transformers."""
    pytest.importorskip("lm_eval")
    reference = run_harness(model, tokenizer, tmp_path)
    prompts = [plain_prompt(question, tokenizer) for question in QUESTIONS]
    scores = score_choices(model, prompts)
    by_id = {sample["doc"]["question_id"]: sample for sample in reference["samples"]["lamps"]}
    for question, ours in zip(QUESTIONS, scores, strict=True):
        theirs = [float(answer[0][0]) for answer in by_id[question.question_id]["resps"]]
        assert ours == pytest.approx(theirs, abs=1e-4)
    for metric in ("acc", "acc_norm", "acc_bytes"):
        right = [
            predict(ours, question.choices, metric) == question.answer_index
            for question, ours in zip(QUESTIONS, scores, strict=True)
        ]
        assert reference["results"]["lamps"][f"{metric},none"] == pytest.approx(np.mean(right))


def run_harness(model: CausalLM, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    save_model(model, folder / "model")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)), encoding="utf-8")
    fields = ("question_id", "question", "choices", "answer_index")
    lines = [json.dumps({name: getattr(question, name) for name in fields}) for question in QUESTIONS]
    (folder / "lamps.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tasks").mkdir()
    task = {
        "task": "lamps",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "lamps.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer_index}}",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
    }
    (folder / "tasks" / "lamps.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    harness_model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder / "model"),
        tokenizer=PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|bos|>"),
        device="cpu",
        batch_size=4,
    )
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return simple_evaluate(harness_model, tasks=["lamps"], task_manager=manager, bootstrap_iters=0)
