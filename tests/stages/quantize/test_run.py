"""The quantize stage on a small model: what it writes, what it reports, where it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_contracts import QUANTIZED_CHECKPOINT
from stages.quantize.findings import Findings, check_limits
from stages.quantize.measure import bytes_per_part, decode_speeds, kernel_drift, median_ratio
from stages.quantize.run import run
from stages.quantize.spec import SPEC, QuantizeConfig
from stages.runtime.errors import UserError
from stages.runtime.store import file_sha256
from stages.whitebox.batches import TokenShards
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.evaluation import evaluate_bits_per_byte
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import load_quantized

CONFIG = QuantizeConfig(
    calibration_tokens=512,
    speed_tokens=4,
    speed_rounds=2,
    sample_prompts=("The lamp",),
    chat_prompts=("Who?",),
    sample_tokens=4,
    num_threads=1,
)


class Built:
    """One run of the stage."""

    def __init__(
        self, config: QuantizeConfig, base_model: Any, folder: Path, open_session: Callable[..., Any]
    ) -> None:
        self.inputs = {
            "model": base_model.model,
            "tokens": base_model.tokens,
            "tokenizer": base_model.tokenizer_folder,
        }
        self.outputs = {name: folder / name for name in ("int8", "int4")}
        for output in self.outputs.values():
            output.mkdir(parents=True)
        session = open_session("quantize", folder / "work")
        self.metrics = run(config, self.inputs, self.outputs, session.session)
        self.events = session.events

    def named(self, kind: str, name: str) -> dict[str, Any]:
        return next(event for event in self.events if event["event"] == kind and event["name"] == name)


@pytest.fixture(scope="module")
def built(
    base_model: Any, tmp_path_factory: pytest.TempPathFactory, open_session: Callable[..., Any]
) -> Built:
    return Built(CONFIG, base_model, tmp_path_factory.mktemp("quantize"), open_session)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_writes_what_the_contract_promises(built: Built, name: str) -> None:
    assert QUANTIZED_CHECKPOINT.check(built.outputs[name]) == []


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_reported_loss_is_that_of_the_written_folder(built: Built, name: str) -> None:
    shards = TokenShards(built.inputs["tokens"], "validation")
    model = load_quantized(built.outputs[name], fast_decode=False)
    held_out = evaluate_bits_per_byte(model, shards, context_tokens=128)
    assert built.metrics[f"{name}_bits_per_byte"] == pytest.approx(held_out.bits_per_byte, rel=1e-5)
    assert abs(built.metrics[f"{name}_increase"]) < 0.01


def test_the_same_inputs_give_the_same_bytes(
    built: Built, base_model: Any, tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    again = Built(CONFIG, base_model, tmp_path, open_session)
    for name, folder in built.outputs.items():
        files = sorted(path.name for path in folder.iterdir())
        assert files == sorted(path.name for path in again.outputs[name].iterdir())
        for file in files:
            assert file_sha256(folder / file) == file_sha256(again.outputs[name] / file), file


def test_bytes_are_counted_by_part_and_add_up_to_the_file(built: Built) -> None:
    float_bytes = bytes_per_part(built.inputs["model"])
    assert float_bytes["embeddings"] == 600 * 32 * 4
    int4_bytes = bytes_per_part(built.outputs["int4"])
    # One byte per weight, a bfloat16 scale per row, and the scales once more for the tied output matrix.
    assert int4_bytes["embeddings"] == 600 * (32 + 2 + 2)
    assert int4_bytes["norms"] == float_bytes["norms"]
    weights = float_bytes["layers"] // 4
    num_matrices = 2 * 7
    assert int4_bytes["layers"] == weights // 2 + 2 * weights // 32 + 16 * num_matrices
    assert built.metrics["int4_bytes"] == sum(int4_bytes.values())
    file_size = (built.outputs["int4"] / "model.safetensors").stat().st_size
    assert 0 < file_size - sum(int4_bytes.values()) < 10_000  # the header


def test_reports_tables_charts_samples_and_progress(built: Built) -> None:
    table = built.named("table", "quantize_result")
    assert [row[0] for row in table["rows"]] == ["float32", "int8", "int4"]
    assert table["rows"][2][3].count("to") == 1 and table["rows"][2][6] > 0
    assert built.named("table", "quantize_bytes")["columns"] == ["bytes of", "float32", "int8", "int4"]
    change = built.named("chart", "quantize_change")["series"]
    assert [len(point) for point in change["measured"]] == [4, 4]
    assert built.named("chart", "quantize_size")["kind"] == "bar"
    samples = [(e["kind"], e["prompt"]) for e in built.events if e["event"] == "sample"]
    assert ("float32", "The lamp") in samples and ("int4 chat", "Who?") in samples and len(samples) == 6
    progress = [event for event in built.events if event["event"] == "progress"]
    assert {event["unit"] for event in progress} >= {"layers", "windows", "rounds"}


def test_rounding_without_calibration_and_without_timing(
    base_model: Any, tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    config = CONFIG.model_copy(update={"int4_method": "nearest", "speed_tokens": 0})
    built = Built(config, base_model, tmp_path, open_session)
    assert "int4_tokens_per_second" not in built.metrics
    assert built.named("table", "quantize_result")["rows"][1][6] is None


def test_too_much_loss_fails_with_a_remedy(
    base_model: Any, tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(base_model.model, damaged)
    model = load_model(damaged)
    for parameter in model.parameters():  # confident and wrong: rounding now moves the loss
        parameter.data.mul_(30.0 if parameter.ndim > 1 else 1.0)
    save_model(model, damaged)
    # Rounding may by chance help a random model, so the limit lies below any change.
    strict = CONFIG.model_copy(
        update={"max_int8_increase": -9.0, "max_int4_increase": -9.0, "speed_tokens": 0}
    )
    broken = type(base_model)(base_model.tokenizer_folder, base_model.tokens, damaged)
    with pytest.raises(UserError, match="bits per byte") as failure:
        Built(strict, broken, tmp_path, open_session)
    assert "if you accept the loss" in failure.value.hint


def test_limits_are_checked_one_by_one(built: Built) -> None:
    class Lossy(Findings):
        def change(self, name: str) -> Any:
            return ({"int8": 0.009, "int4": 0.2}[name], type("I", (), {"low": 0.1, "high": 0.3}))

    findings = Lossy(1, {}, {}, {}, {})
    with pytest.raises(UserError, match=r"int4 costs 0\.2000 .* allowed are 0\.1") as failure:
        check_limits(findings, QuantizeConfig())
    assert "group_size = 32" in failure.value.hint
    check_limits(findings, QuantizeConfig(max_int4_increase=0.25))


def test_a_group_that_does_not_fit_is_explained(
    base_model: Any, tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match="32 inputs do not divide into groups of 64"):
        Built(CONFIG.model_copy(update={"group_size": 64}), base_model, tmp_path, open_session)


def test_a_model_with_experts_is_refused_and_one_with_biases_and_windows_is_not(
    base_model: Any, tmp_path: Path, open_session: Callable[..., Any]
) -> None:
    config = load_model(base_model.model).config
    experts = replace(config, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    qwen2 = replace(config, qk_norm=False, attention_bias=True, sliding_window=8, sliding_layers=(1,))
    for name, changed in (("experts", experts), ("qwen2", qwen2)):
        save_model(CausalLM(changed), tmp_path / name)
    with_folder = partial(type(base_model), base_model.tokenizer_folder, base_model.tokens)
    with pytest.raises(UserError, match="chooses among 4 experts"):
        Built(CONFIG, with_folder(tmp_path / "experts"), tmp_path / "a", open_session)
    built = Built(CONFIG, with_folder(tmp_path / "qwen2"), tmp_path / "b", open_session)
    assert built.metrics["int4_bits_per_byte"] > 0


def test_speed_rounds_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(
        "stages.quantize.measure.generate", lambda model, *_, **__: calls.append(model) or [1, 2, 3]
    )
    speeds = decode_speeds({"a": "A", "b": "B"}, [1], 3, 2)  # type: ignore[dict-item]
    assert calls == ["A", "B"] * 3
    assert [len(found) for found in speeds.values()] == [2, 2]
    assert median_ratio([4.0, 9.0, 8.0], [2.0, 3.0, 8.0]) == 2.0


def test_kernel_drift_is_small_and_zero_without_kernels(built: Built) -> None:
    exact = load_quantized(built.outputs["int8"], fast_decode=False)
    ids = TokenShards(built.inputs["tokens"], "validation").document(0)[:40].tolist()
    assert abs(kernel_drift(exact, exact, ids)) < 1e-5
    assert abs(kernel_drift(load_quantized(built.outputs["int8"]), exact, ids)) < 0.01


def test_spec_names_its_inputs() -> None:
    assert {role: (read.stage, read.part) for role, read in SPEC.reads.items()} == {
        "model": ("dpo", "model"),
        "tokens": ("tokenizer", "tokens"),
        "tokenizer": ("tokenizer", "tokenizer"),
    }
