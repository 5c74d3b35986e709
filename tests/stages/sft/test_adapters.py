"""The SFT stage with adapters: each kind learns, is saved beside the merged model, resumes, and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from data_contracts import CHECKPOINT
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.store import file_sha256
from stages.sft.adapters import lora_config
from stages.sft.setup import trainer_settings
from stages.sft.spec import SPEC, SftConfig
from stages.whitebox.chat_format import RenderedChat
from stages.whitebox.checkpoint import load_model
from stages.whitebox.device import Device
from stages.whitebox.packing import pack

KINDS = ("lora", "rslora", "dora", "qlora")
WHOLE = "lora and the whole embedding"
SMALL = {"adapter_rank": 4, "adapter_alpha": 8.0, "learning_rate": 0.02, "adapter_embeddings": "control"}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tuned: Any) -> Path:
    """A model that knows something: beside random embeddings, which stay frozen, no adapter learns much."""
    return tuned.outputs["model"]


@pytest.fixture(scope="module")
def adapt(run_sft: Callable[..., Any], base: Path) -> Callable[..., Any]:
    """Run the stage with an adapter on `base`."""

    def run(adapter: str, **fields: Any) -> Any:
        inputs = {"model": base} | fields.pop("inputs", {})
        return run_sft(adapter=adapter, inputs=inputs, **{**SMALL, **fields})

    return run


@pytest.fixture(scope="module")
def adapted(adapt: Callable[..., Any]) -> dict[str, Any]:
    """One run of each kind, and one with the embedding."""
    return {kind: adapt(kind) for kind in KINDS} | {WHOLE: adapt("lora", adapter_embeddings="all")}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_leaves_an_ordinary_model(adapted: dict[str, Any], kind: str) -> None:
    run = adapted[kind]
    assert run.metrics["validation_loss"] < 0.995 * run.metrics["base_validation_loss"]
    assert CHECKPOINT.check(run.outputs["model"]) == []
    said = [event["message"] for event in run.events if event["event"] == "log"]
    assert any(message.startswith(f"{kind} of rank 4 on 14 layers (q_proj, ") for message in said)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", WHOLE])
def test_peft_reads_the_adapter_over_the_base_as_the_merged_model(
    adapted: dict[str, Any], kind: str, base: Path
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    folder = adapted[kind].outputs["model"]
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        folder / "adapter",
    )
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(folder)(ids), theirs(ids).logits, rtol=0, atol=1e-4)
        opened = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(opened(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("lora", {}), ("qlora", {}), (WHOLE, {"adapter": "lora", "adapter_embeddings": "all"})],
)
def test_a_stopped_run_ends_with_the_same_bits(
    adapted: dict[str, Any], adapt: Callable[..., Any], tmp_path: Path, kind: str, fields: dict[str, str]
) -> None:
    fields = {"adapter": kind, **fields}
    with pytest.raises(StopRequested, match="stopped after step 3"):
        adapt(**fields, work=tmp_path / "work", stop_after=3)
    resumed = adapt(**fields, work=tmp_path / "work")
    for name in ("model.safetensors", f"adapter/{WEIGHTS}", "adapter/adapter_config.json"):
        first, second = (run.outputs["model"] / name for run in (resumed, adapted[kind]))
        assert file_sha256(first) == file_sha256(second), name


@pytest.mark.parametrize(("kind", "embeddings"), [("lora", "control"), (WHOLE, "all")])
def test_an_adapter_goes_on_where_it_was(
    adapted: dict[str, Any], adapt: Callable[..., Any], kind: str, embeddings: str
) -> None:
    first, wanted = adapted[kind], {"adapter_embeddings": embeddings, "max_steps": 2}
    again = adapt("lora", adapter_from=str(first.outputs["model"]), **wanted)
    assert again.metrics["validation_loss"] < 1.1 * first.metrics["validation_loss"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter_rank": 8}, "has rank 4, expected 8"),
        ({"adapter": "rslora"}, "has kind LoRA, expected rsLoRA"),
        ({"adapter_targets": ("q_proj",)}, r"expected q_proj \(2 layers\)"),
        (
            {"adapter_embeddings": "all"},
            r"has trained tokens \[.*\], expected all: set .* adapter_embeddings",
        ),
        (
            {"adapter_targets": ("lm_head",)},
            "asked for on lm_head; the linear layers of .* are q_proj,",
        ),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    adapted: dict[str, Any], adapt: Callable[..., Any], fields: dict[str, Any], message: str
) -> None:
    start = str(adapted["lora"].outputs["model"])
    with pytest.raises(UserError, match=message):
        adapt(**{"adapter": "lora", "adapter_from": start, **fields})


def test_an_adapter_of_another_base_is_refused(
    adapted: dict[str, Any], adapt: Callable[..., Any], base_model: Any
) -> None:
    start = str(adapted["lora"].outputs["model"] / "adapter")
    with pytest.raises(UserError, match="trained beside another base model"):
        adapt("lora", adapter_from=start, inputs={"model": base_model.model})


def test_the_fingerprint_follows_the_content_of_the_first_adapter(
    adapted: dict[str, Any], tmp_path: Path
) -> None:
    source = adapted["lora"].outputs["model"] / "adapter"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    configs = [SftConfig(adapter="lora", adapter_from=str(folder)) for folder in (source, tmp_path)]
    assert SPEC.external_inputs is not None
    first, second = (SPEC.external_inputs(config) for config in configs)
    assert first == second
    assert SPEC.key_config(configs[0]) == SPEC.key_config(configs[1])
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    assert SPEC.external_inputs(configs[1])[WEIGHTS] != first[WEIGHTS]


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    config = SftConfig(adapter="lora", adapter_from=str(tmp_path))
    assert SPEC.external_inputs is not None
    with pytest.raises(UserError, match=r"adapter_from: .* holds no adapter"):
        SPEC.external_inputs(config)
    with pytest.raises(ValidationError, match=r"adapter_from = .* has no effect without an adapter"):
        SftConfig(adapter_from=str(tmp_path))


def test_the_configuration_says_what_peft_needs(adapted: dict[str, Any]) -> None:
    fields = json.loads((adapted["dora"].outputs["model"] / "adapter/adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["use_dora"], fields["use_rslora"]) == (
        4,
        8,
        True,
        False,
    )
    assert (fields["peft_type"], fields["task_type"]) == ("LORA", "CAUSAL_LM")


def test_the_strength_does_not_follow_from_the_rank(base_model: Any) -> None:
    kinds = [
        SftConfig(adapter=kind, adapter_rank=rank)
        for kind in ("lora", "rslora", "dora")
        for rank in (4, 16, 48)
    ]
    found = [lora_config(config, base_model.tokenizer) for config in kinds]
    assert {round(one.scale * one.rank**0.5, 9) for one in found if one is not None} == {8.0}
    told = lora_config(SftConfig(adapter="lora", adapter_alpha=3.0), base_model.tokenizer)
    assert told is not None
    assert told.alpha == 3.0


def test_adapters_have_adamw_and_a_rate_of_their_own(base_model: Any) -> None:
    model, cpu = load_model(base_model.model), Device(torch.device("cpu"), torch.float32, "a test")
    rows = pack([RenderedChat([1] * 8, [True] * 8)], 8, pad_id=3)
    full = trainer_settings(SftConfig(), model, rows, 4, 2, cpu)
    lora = trainer_settings(SftConfig(adapter="lora", optimizer="muon"), model, rows, 4, 2, cpu)
    assert lora.learning_rate > full.learning_rate == pytest.approx(lora.embedding_learning_rate)
    assert full.embedding_learning_rate is None
    assert lora.matrix_learning_rate is None
    plus = trainer_settings(SftConfig(adapter="lora", lora_plus_ratio=16.0), model, rows, 4, 2, cpu)
    assert plus.learning_rate * plus.lora_plus_ratio == pytest.approx(lora.learning_rate)
    assert plus.embedding_learning_rate == pytest.approx(full.learning_rate)


def test_an_adapter_beside_noise_and_an_early_end_resumes_with_the_same_bits(
    adapt: Callable[..., Any], tmp_path: Path
) -> None:
    fields = {"neftune_alpha": 5.0, "patience": 2, "adapter_dropout": 0.1, "learning_rate": 0.2}
    whole = adapt("lora", **fields)
    with pytest.raises(StopRequested):
        adapt("lora", work=tmp_path / "work", stop_after=3, **fields)
    resumed = adapt("lora", work=tmp_path / "work", **fields)
    for name in ("model.safetensors", f"adapter/{WEIGHTS}"):
        found = [file_sha256(run.outputs["model"] / name) for run in (whole, resumed)]
        assert found[0] == found[1]
