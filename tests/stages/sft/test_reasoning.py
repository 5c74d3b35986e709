"""Training sees of earlier reasoning what serving shows, for every answer of generated conversations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.dpo.setup import open_model as open_for_dpo
from stages.runtime.store import file_sha256
from stages.sft.conversations import views
from stages.whitebox.chat_format import render
from stages.whitebox.chat_template import chat_template, reasoning_of, why_another_template, write_template
from stages.whitebox.tokenizer import Tokenizer
from tests.generated_conversations import generated


def test_every_answer_is_trained_on_once_behind_the_prompt_of_serving(base_model: Any) -> None:
    tokenizer = base_model.tokenizer.with_reasoning("last_turn")
    num_split = 0
    for messages, tools in generated(120, seed=1):
        trained = []
        for view in views(messages):
            for place, message in enumerate(view):
                if message["role"] == "assistant" and message.get("weight") != 0:
                    trained.append((place, view))
        assert sorted(place for place, _ in trained) == [
            place for place, message in enumerate(messages) if message["role"] == "assistant"
        ]
        for place, view in trained:
            whole = render(view, tokenizer, tools=tools)
            served = render(messages[:place], tokenizer, tools=tools, add_generation_prompt=True).ids
            assert whole.ids[: len(served)] == served
            answer = render([{"role": "user", "content": ""}, messages[place]], tokenizer)
            said = [i for i, is_target in zip(answer.ids, answer.is_target, strict=True) if is_target]
            assert whole.ids[len(served) : len(served) + len(said)] == said
        num_split += len(views(messages)) > 1
    assert num_split > 20


@pytest.mark.parametrize("reasoning", ["drop", "last_turn"])
def test_the_model_carries_what_its_training_showed(
    run_sft: Callable[..., Any], base_model: Any, reasoning: str
) -> None:
    from transformers import AutoTokenizer

    model = run_sft(max_steps=1, reasoning=reasoning).outputs["model"]
    assert reasoning_of(model) == Tokenizer.from_folder(model).reasoning == reasoning
    assert AutoTokenizer.from_pretrained(model).chat_template == chat_template(reasoning)  # type: ignore[arg-type]
    tokenizer, _ = open_for_dpo({"tokenizer": base_model.tokenizer_folder, "model": model}, _cpu())
    assert tokenizer.reasoning == reasoning


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def test_the_default_leaves_the_tokenizers_files_alone(tuned: Any, base_model: Any) -> None:
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        assert file_sha256(tuned.outputs["model"] / name) == file_sha256(base_model.tokenizer_folder / name)


def test_a_foreign_template_is_known(tmp_path: Path) -> None:
    assert why_another_template(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text(chat_template("drop"))
    assert why_another_template(tmp_path) is None
    write_template(tmp_path, "last_turn")
    assert reasoning_of(tmp_path) == "last_turn"
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}[INST]{{ m.content }}{% endfor %}")
    assert "it lacks <|im_start|>, <|im_end|>" in str(why_another_template(tmp_path))
