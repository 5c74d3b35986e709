"""The SFT stage on forty conversations: what it writes, learns, reports and survives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_contracts import BATCH_PREVIEW, CHECKPOINT, CONVERSATIONS
from data_contracts.tables import write_part
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.store import file_sha256
from stages.whitebox.chat_format import render
from stages.whitebox.checkpoint import load_model, read_stop_ids
from stages.whitebox.generate import generate
from stages.whitebox.reply import spell


def test_outputs_keep_their_contracts(tuned: Any) -> None:
    assert CHECKPOINT.check(tuned.outputs["model"]) == []
    assert BATCH_PREVIEW.check(tuned.outputs["preview"]) == []


def test_it_learns_and_says_what_that_cost(tuned: Any) -> None:
    metrics = tuned.metrics
    assert metrics["validation_loss"] < 0.7 * metrics["base_validation_loss"]
    increase = metrics["validation_bits_per_byte"] - metrics["base_validation_bits_per_byte"]
    assert metrics["bits_per_byte_increase"] == increase
    assert (metrics["num_truncated"], metrics["num_without_targets"]) == (0, 0)


def test_it_reports_curves_samples_table_and_chart(tuned: Any) -> None:
    events = tuned.events
    kinds = {event["event"] for event in events}
    assert {"progress", "metrics", "sample", "table", "chart"} <= kinds
    names = {name for event in events if event["event"] == "metrics" for name in event["values"]}
    assert {"train_loss", "validation_loss", "validation_bits_per_byte", "exact_tool_calls"} <= names
    prompts = {(event["prompt"], event["kind"]) for event in events if event["event"] == "sample"}
    assert prompts == {("The", "text"), ("Hi", "chat")}


def test_the_preview_shows_which_tokens_are_trained_on(tuned: Any, base_model: Any) -> None:
    preview = load_file(tuned.outputs["preview"] / "preview.safetensors")
    labels, ids = preview["labels"], preview["ids"]
    assert (labels[labels != -100] == ids[labels != -100]).all()
    text = base_model.tokenizer.decode(labels[labels != -100].tolist())
    assert '{"name": "calculator", "arguments"' in text
    assert "What is" not in text
    assert "What is" in base_model.tokenizer.decode(ids[labels == -100].tolist())
    (batch,) = (event for event in tuned.events if event["event"] == "batch")
    shown = batch["rows"][0]
    trained = "".join(stretch["text"] for stretch in shown if stretch["weight"])
    first = labels[0][labels[0] != -100].tolist()
    assert trained == spell(base_model.tokenizer, first)
    assert not any(stretch["is_cut"] for stretch in shown)
    assert (tuned.outputs["preview"] / "preview.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_model_folder_opens_in_transformers(tuned: Any, base_model: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tuned.outputs["model"]
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who lights lamp 4?"}]
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert prompt[0].tolist() == render(messages, base_model.tokenizer, add_generation_prompt=True).ids
    ours = load_model(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(prompt).logits, ours(prompt), rtol=0, atol=1e-4)
    stop_ids = read_stop_ids(folder)
    assert base_model.tokenizer.special_id("<|im_end|>") in stop_ids
    generated = theirs.generate(prompt, max_new_tokens=12, max_length=None, do_sample=False)[
        0, prompt.shape[1] :
    ]
    kept = [i for i in generated.tolist() if i not in stop_ids]
    assert kept == generate(ours, prompt[0].tolist(), max_new_tokens=12, stop_ids=stop_ids)


def test_a_stopped_run_ends_with_the_same_bits(
    tuned: Any, run_sft: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(StopRequested, match="stopped after step 3"):
        run_sft(work=tmp_path / "work", stop_after=3)
    resumed = run_sft(work=tmp_path / "work")
    for name in ("model.safetensors", "config.json"):
        assert file_sha256(resumed.outputs["model"] / name) == file_sha256(tuned.outputs["model"] / name)
    assert resumed.metrics["validation_loss"] == tuned.metrics["validation_loss"]


def test_max_steps_ends_earlier(run_sft: Callable[..., Any]) -> None:
    short = run_sft(max_steps=2, replay_fraction=0.0)
    steps = [event["step"] for event in short.events if event["event"] == "metrics"]
    assert max(steps) == 2


def test_too_long_conversations_are_counted_and_said(run_sft: Callable[..., Any]) -> None:
    cut = run_sft(context_tokens=40, max_steps=1)
    assert cut.metrics["num_truncated"] > 0
    warnings = [event["message"] for event in cut.events if event.get("level") == "warning"]
    assert any("are longer than a row" in message for message in warnings)
    (batch,) = (event for event in cut.events if event["event"] == "batch")
    preview = load_file(cut.outputs["preview"] / "preview.safetensors")
    shown = sum(stretch["is_cut"] for row in batch["rows"] for stretch in row)
    assert shown == int(preview["ends_cut"][: len(batch["rows"])].sum()) > 0


def test_no_row_ends_inside_a_call_and_that_is_said(run_sft: Callable[..., Any], base_model: Any) -> None:
    said = [run_sft(context_tokens=length, max_steps=1) for length in (30, 50)]
    opening, closing = (base_model.tokenizer.special_id(name) for name in ("<tool_call>", "</tool_call>"))
    for run in said:
        ids = load_file(run.outputs["preview"] / "preview.safetensors")["ids"]
        assert (ids == opening).sum() == (ids == closing).sum()
    assert any(run.metrics["num_cut_before_call"] > 0 for run in said)
    warnings = [e["message"] for run in said for e in run.events if e.get("level") == "warning"]
    assert any("of them before a tool call" in message for message in warnings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_tokens": 4096}, "context_tokens is 4096, the model reads at most 128"),
        (
            {"kind_weights": {"tols": 2.0}},
            "kind_weights names .'tols'.; kinds of conversations: .'qa', 'tool'.",
        ),
    ],
)
def test_settings_that_cannot_be(run_sft: Callable[..., Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_sft(**fields)


def test_a_conversation_that_cannot_be_rendered_is_named(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    messages = [{"role": "robot", "content": "beep"}]
    row = {"conversation_id": "c7", "source": "s", "kind": "own", "split": "train", "messages": messages}
    write_part(tmp_path, CONVERSATIONS, [row])
    with pytest.raises(UserError, match="conversation c7: unknown role 'robot'"):
        run_sft(inputs={"conversations": tmp_path})
