"""The DPO stage on eighty pairs: what it writes, learns, reports, refuses and survives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_contracts import CHECKPOINT, PREFERENCES
from data_contracts.tables import write_part
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.store import file_sha256
from stages.whitebox.checkpoint import read_stop_ids


def test_outputs_keep_their_contract(tuned: Any, base_model: Any) -> None:
    folder = tuned.outputs["model"]
    assert CHECKPOINT.check(folder) == []
    assert base_model.tokenizer.special_id("<|im_end|>") in read_stop_ids(folder)
    assert (folder / "chat_template.jinja").is_file()


def test_held_out_pairs_are_won(tuned: Any) -> None:
    metrics = tuned.metrics
    assert metrics["num_validation_pairs"] == 40
    assert metrics["validation_accuracy_low"] > 0.5
    assert metrics["validation_margin"] > 0
    before = metrics["sft_validation_bits_per_byte"]
    assert metrics["bits_per_byte_increase"] == metrics["validation_bits_per_byte"] - before


def test_it_reports_curves_samples_tables_and_chart(tuned: Any) -> None:
    events = tuned.events
    assert {"progress", "metrics", "sample", "table", "chart"} <= {event["event"] for event in events}
    names = {name for event in events if event["event"] == "metrics" for name in event["values"]}
    assert {"train_loss", "margin", "accuracy", "validation_accuracy", "validation_margin"} <= names
    tables = {event["name"]: event for event in events if event["event"] == "table"}
    assert [row[:2] for row in tables["dpo_by_kind"]["rows"]] == [["truncated", 20], ["wrong_answer", 20]]
    assert tables["dpo_before_after"]["rows"][0][:2] == ["margin, nats", 0.0]


def test_training_starts_at_the_reference(tuned: Any) -> None:
    points = [event["values"] for event in tuned.events if event["event"] == "metrics"]
    assert points[0]["margin"] == pytest.approx(0, abs=1e-4)
    own_loss = -points[0]["chosen_log_prob_per_token"]  # the SFT term, beside log 2
    assert points[0]["train_loss"] == pytest.approx(0.6931 + own_loss, abs=1e-3)
    assert points[-1]["margin"] > 0.1


def test_a_stopped_run_ends_with_the_same_bits_and_keeps_its_reference(
    tuned: Any, run_dpo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StopRequested, match="stopped after step 4"):
        run_dpo(work=tmp_path / "work", stop_after=4)
    written = (tmp_path / "work/reference-train.safetensors").stat().st_mtime_ns
    resumed = run_dpo(work=tmp_path / "work")
    assert (tmp_path / "work/reference-train.safetensors").stat().st_mtime_ns == written
    weights = [t.outputs["model"] / "model.safetensors" for t in (resumed, tuned)]
    assert file_sha256(weights[0]) == file_sha256(weights[1])
    assert resumed.metrics["validation_margin"] == tuned.metrics["validation_margin"]


def test_damage_fails_the_stage_or_only_warns(run_dpo: Callable[..., Any]) -> None:
    harmful = {"learning_rate": 0.1, "epochs": 1.0, "max_bits_per_byte_increase": 0.01}
    with pytest.raises(UserError, match="DPO damaged the model: held-out bits per byte rose by") as caught:
        run_dpo(**harmful)
    assert "set [dpo] learning_rate or epochs lower" in caught.value.hint
    warned = run_dpo(**harmful, on_degradation="warn")
    assert warned.metrics["bits_per_byte_increase"] > 0.01
    messages = [event["message"] for event in warned.events if event.get("level") == "warning"]
    assert any("DPO damaged the model" in message for message in messages)


def test_pairs_that_do_not_fit_or_say_nothing_are_counted(
    run_dpo: Callable[..., Any], preferences_part: Path, tmp_path: Path
) -> None:
    from data_contracts.tables import read_rows

    rows = list(read_rows(preferences_part))[:20]
    long = {**rows[2], "pair_id": "long", "chosen": {**rows[2]["chosen"], "content": "lamp " * 200}}
    same = {**rows[3], "pair_id": "same", "rejected": rows[3]["chosen"]}
    write_part(tmp_path, PREFERENCES, [*rows, long, same])
    found = run_dpo(inputs={"preferences": tmp_path}, epochs=1.0)
    messages = [event["message"] for event in found.events if event.get("level") == "warning"]
    assert messages[:2] == [
        "1 rows have an answer that ends behind 128 tokens: left out",
        "1 pairs have the same answer twice: left out",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_tokens": 4096}, "context_tokens is 4096, the model reads at most 128"),
        ({"context_tokens": 12}, r"there are no train pairs of at most 12 tokens \(40 longer\)"),
    ],
)
def test_settings_that_cannot_be(run_dpo: Callable[..., Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_dpo(**fields)
