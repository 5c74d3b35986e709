"""A teacher: its logits, its answers, what a stopped run keeps of them, and teachers that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.runtime.errors import StopRequested, UserError
from stages.runtime.store import file_sha256
from stages.sft.spec import SPEC, SftConfig
from stages.sft.teaching import _read
from stages.whitebox.chat_format import parse_completion, render
from stages.whitebox.checkpoint import load_model, read_stop_ids, save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer, copy_tokenizer


@pytest.fixture(scope="module")
def teacher(run_sft: Callable[..., Any]) -> Path:
    """A model that has learned the conversations somewhat."""
    folder: Path = run_sft(epochs=40.0).outputs["model"]
    return folder


def test_logits_of_a_better_model_help(run_sft: Callable[..., Any], teacher: Path) -> None:
    quick = {"epochs": 2.0, "learning_rate": 3e-3, "replay_fraction": 0.0, "validation_conversations": 8}
    taught = run_sft(**quick, teacher=str(teacher), teacher_share=1.0, teacher_temperature=1.0)
    assert taught.metrics["validation_loss"] < taught.metrics["base_validation_loss"]
    again = run_sft(**quick, teacher=str(teacher), teacher_share=1.0, teacher_temperature=1.0)
    plain = run_sft(**quick, teacher=str(teacher), teacher_share=0.0)
    bits = [file_sha256(run.outputs["model"] / "model.safetensors") for run in (taught, again, plain)]
    assert bits[0] == bits[1] != bits[2]
    assert bits[2] == file_sha256(run_sft(**quick).outputs["model"] / "model.safetensors")


def test_answers_are_what_the_teacher_writes_and_are_kept(
    run_sft: Callable[..., Any], teacher: Path, tmp_path: Path
) -> None:
    quick = {"max_steps": 1, "teacher": str(teacher), "teacher_share": 0.0, "teacher_answers": True}
    with pytest.raises(StopRequested, match="stopped after 5 of 32 answers of the teacher; they are kept"):
        run_sft(**quick, work=tmp_path / "work", stop_after=5)
    path = tmp_path / "work" / "teacher_answers.jsonl"
    first = path.read_text()
    assert first.count("\n") == 5
    path.write_text(first + '["c0')  # a line that a kill cut
    run = run_sft(**quick, work=tmp_path / "work")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 32 and path.read_text().startswith(first)
    model, tokenizer = load_model(teacher), Tokenizer.from_folder(teacher)
    said, num_compared = dict(lines), 0
    for number in (n for n in range(0, 40, 4) if n % 5 and said[f"c{n:03d}"] is not None):
        question = [{"role": "user", "content": f"Who lights lamp {number}?"}]
        prompt = render(question, tokenizer, add_generation_prompt=True).ids
        written = generate(model, prompt, max_new_tokens=128 - len(prompt), stop_ids=read_stop_ids(teacher))
        assert said[f"c{number:03d}"] == parse_completion(written, tokenizer)
        num_compared += 1
    assert num_compared > 0
    messages = " ".join(event["message"] for event in run.events if event["event"] == "log")
    assert f"the teacher answers {sum(a is not None for a in said.values())} of 32 conversations" in messages


def test_a_teacher_of_other_pieces_is_refused(
    run_sft: Callable[..., Any], teacher: Path, base_model: Any, tmp_path: Path, other_tokenizer: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "t")
    copy_tokenizer(other_tokenizer, tmp_path / "t")
    with pytest.raises(
        UserError, match=r"the teacher in .* was trained with another tokenizer of the same size"
    ):
        run_sft(teacher=str(tmp_path / "t"))
    torch.manual_seed(0)
    save_model(
        CausalLM(ModelConfig(640, 32, 64, 2, 2, 1, 16, max_position_embeddings=128)), tmp_path / "wide"
    )
    with pytest.raises(UserError, match="the teacher has a vocabulary of 640, the tokenizer of 600"):
        run_sft(teacher=str(tmp_path / "wide"))


def test_a_teacher_of_short_texts_is_refused_where_it_reads_whole_rows(
    run_sft: Callable[..., Any], base_model: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    short = ModelConfig(600, 32, 64, 2, 2, 1, 16, max_position_embeddings=32)
    save_model(CausalLM(short), tmp_path / "short")
    copy_tokenizer(base_model.tokenizer_folder, tmp_path / "short")
    fields = {"teacher": str(tmp_path / "short"), "max_steps": 1, "context_tokens": 64}
    with pytest.raises(UserError, match="rows have 64 tokens, the teacher reads at most 32") as caught:
        run_sft(**fields)
    assert "teacher_share = 0" in caught.value.message
    run_sft(**fields, teacher_share=0.0)


def test_a_teacher_that_is_not_there_and_answers_of_none() -> None:
    with pytest.raises(UserError, match=r"teacher: .*nowhere is no folder"):
        SPEC.external_inputs(SftConfig(teacher="/nowhere"))  # type: ignore[misc]
    with pytest.raises(UserError, match="has no effect without a teacher"):
        SPEC.parse_config({"teacher_answers": True})


def test_the_teachers_content_counts_and_not_its_place(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "elsewhere" / "model")
    digests = [SPEC.external_inputs(SftConfig(teacher=str(f))) for f in (teacher, tmp_path / "elsewhere")]  # type: ignore[misc]
    assert digests[0] == digests[1] and "teacher model.safetensors" in digests[0]
    assert "teacher" not in SPEC.key_config(SftConfig(teacher=str(teacher)))
    assert SPEC.external_inputs(SftConfig()) == {}  # type: ignore[misc]


def test_answers_with_any_line_break_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(["a", {"content": "x\u2028y\x85z"}], ensure_ascii=False) + "\n[cut", "utf-8")
    assert _read(path) == {"a": {"content": "x\u2028y\x85z"}}
