"""The benchmark stage on five small models: rows, bytes, reports, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts import BENCHMARK, EVAL_PREDICTIONS, EVAL_RESULTS
from data_contracts.tables import read_rows, write_part
from stages.benchmark_eval.run import run
from stages.benchmark_eval.spec import SPEC, BenchmarkEvalConfig
from stages.quantize.calibration import quantize_nearest_everywhere
from stages.runtime.errors import UserError
from stages.runtime.store import file_sha256
from stages.whitebox.batches import TokenShards
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.evaluation import evaluate_bits_per_byte
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import save_quantized

CONFIG = BenchmarkEvalConfig(max_questions=10, num_threads=1)


def question_row(number: int) -> dict[str, Any]:
    return {
        "question_id": f"q{number:02d}",
        "task": "keepers" if number % 3 else "lamps",
        "question": f"Who lights lamp {number}?",
        "choices": ["the keeper", "nobody", "a boat", "the sea"][: 3 + number % 2],
        "answer_index": number % 3,
        "source": "fixture",
    }


@dataclass(frozen=True)
class Built:
    """One run of the stage."""

    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    metrics: Mapping[str, float]
    events: list[dict[str, Any]]

    def rows(self, **wanted: str) -> list[dict[str, Any]]:
        found = read_rows(self.outputs["results"])
        return [row for row in found if all(row[name] == value for name, value in wanted.items())]

    def named(self, kind: str, name: str) -> dict[str, Any]:
        return next(event for event in self.events if event["event"] == kind and event["name"] == name)


@pytest.fixture(scope="module")
def inputs(base_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five models: dpo is sft itself, int8 and int4 are made of it."""
    root = tmp_path_factory.mktemp("benchmark")
    write_part(root / "benchmark", BENCHMARK, map(question_row, range(24)))
    sft = load_model(base_model.model)
    for parameter in sft.parameters():
        parameter.data.mul_(8.0 if parameter.ndim > 1 else 1.0)
    save_model(sft, root / "sft")
    shutil.copytree(root / "sft", root / "dpo")
    save_quantized(quantize_nearest_everywhere(sft, 8, None), root / "int8")
    save_quantized(quantize_nearest_everywhere(sft, 4, 32), root / "int4")
    models = {name: root / name for name in ("sft", "dpo", "int8", "int4")}
    return {
        "benchmark": root / "benchmark",
        "tokens": base_model.tokens,
        "tokenizer": base_model.tokenizer_folder,
        "base": base_model.model,
        **models,
    }


@pytest.fixture(scope="module")
def build(open_session: Callable[..., Any]) -> Callable[..., Built]:
    def make(config: BenchmarkEvalConfig, inputs: Mapping[str, Path], folder: Path) -> Built:
        outputs = {name: folder / name for name in SPEC.writes}
        session = open_session("benchmark_eval", folder / "work")
        metrics = run(config, inputs, outputs, session.session)
        return Built(inputs, outputs, metrics, session.events)

    return make


@pytest.fixture(scope="module")
def built(build: Callable[..., Built], inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(CONFIG, inputs, tmp_path_factory.mktemp("built"))


def test_keeps_its_contracts(built: Built) -> None:
    assert EVAL_RESULTS.check(built.outputs["results"]) == []
    assert EVAL_PREDICTIONS.check(built.outputs["predictions"]) == []


def test_every_model_is_scored_and_every_row_names_its_protocol(built: Built) -> None:
    accuracies = built.rows(task="all", metric="acc_norm")
    scored = [(row["model"], row["protocol"]) for row in accuracies]
    chats = [(m, p) for m in ("sft", "dpo", "int8", "int4") for p in ("plain, 0-shot", "chat, 0-shot")]
    assert scored == [("base", "plain, 0-shot"), *chats]
    for row in accuracies:
        assert row["ci_low"] <= row["value"] <= row["ci_high"] and row["num_items"] == 10 and row["verdict"]
    assert {row["task"] for row in built.rows(metric="acc")} == {"all", "keepers", "lamps"}
    assert all(row["protocol"] for row in built.rows())


def test_bits_per_byte_is_that_of_the_evaluation(built: Built) -> None:
    shards = TokenShards(built.inputs["tokens"], "validation")
    expected = evaluate_bits_per_byte(load_model(built.inputs["sft"]), shards, context_tokens=128)
    (row,) = built.rows(model="sft", metric="bits_per_byte")
    assert row["value"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["protocol"] == "windows of 128 tokens"
    assert built.metrics["sft_bits_per_byte"] == row["value"]


def test_the_same_model_cannot_be_told_from_itself(built: Built) -> None:
    comparisons = built.rows(model="dpo - sft")
    assert len(comparisons) == 1 + 3 * 2
    assert all(row["value"] == 0.0 and row["verdict"].startswith("cannot tell apart") for row in comparisons)
    assert {row["model"] for row in built.rows(metric="acc_difference")} == {
        "sft - base",
        "dpo - sft",
        "int8 - dpo",
        "int4 - dpo",
    }


def test_the_same_inputs_give_the_same_bytes(
    built: Built, build: Callable[..., Built], inputs: Any, tmp_path: Path
) -> None:
    again = build(CONFIG.model_copy(update={"max_rows": 64}), inputs, tmp_path)
    for name, folder in built.outputs.items():
        file = "part-00000.parquet"
        assert file_sha256(folder / file) == file_sha256(again.outputs[name] / file)


def test_reports_tables_charts_and_progress(built: Built) -> None:
    accuracy = built.named("table", "benchmark_accuracy")
    assert accuracy["caption"].startswith("10 of 24 questions") and len(accuracy["rows"]) == 9
    assert len(built.named("table", "benchmark_comparisons")["rows"]) == 4 + 7
    assert len(built.named("table", "benchmark_tasks")["rows"]) == 2 * 9
    chart = built.named("chart", "benchmark_accuracy")["series"]
    assert list(chart) == ["plain, 0-shot", "chat, 0-shot", "chance", "best constant"]
    assert [point[0] for point in chart["chat, 0-shot"]] == ["sft", "dpo", "int8", "int4"]
    assert len(built.named("chart", "benchmark_bits_per_byte")["series"]["bits per byte"][0]) == 4
    units = {event["unit"] for event in built.events if event["event"] == "progress"}
    assert units == {"windows", "questions"}
    assert {"base_acc_norm", "int4_acc_norm", "chance", "best_constant", "num_questions"} <= set(
        built.metrics
    )


def test_without_questions_only_text_is_scored(
    build: Callable[..., Built], inputs: Any, tmp_path: Path
) -> None:
    write_part(tmp_path / "none", BENCHMARK, [])
    built = build(CONFIG, {**inputs, "benchmark": tmp_path / "none"}, tmp_path / "out")
    assert EVAL_PREDICTIONS.check(built.outputs["predictions"]) == []
    assert {row["metric"] for row in built.rows()} == {"bits_per_byte", "bits_per_byte_difference"}
    assert any("no questions" in event.get("message", "") for event in built.events)


def test_a_model_of_another_tokenizer_is_refused(
    build: Callable[..., Built], inputs: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_model(
        CausalLM(ModelConfig(500, 32, 64, 1, 2, 1, 16, max_position_embeddings=64)), tmp_path / "other"
    )
    with pytest.raises(UserError, match="base has a vocabulary of 500, the tokenizer 600") as failure:
        build(CONFIG, {**inputs, "base": tmp_path / "other"}, tmp_path / "out")
    assert "build the chain again" in failure.value.hint


def test_a_float_folder_in_place_of_a_quantized_one_is_explained(
    build: Callable[..., Built], inputs: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no quantization_config"):
        build(CONFIG, {**inputs, "int8": inputs["sft"]}, tmp_path / "out")
