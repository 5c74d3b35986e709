"""Quantize as a story: open the assistant, write it in 8 and in 4 bits, measure all three side by side."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from stages.quantize.calibration import quantize_calibrated, quantize_nearest_everywhere
from stages.quantize.findings import FLOAT, INT4, INT8, Findings, check_limits, show
from stages.quantize.measure import SPEED_PROMPT_TOKENS, bytes_per_part, decode_speeds, kernel_drift
from stages.quantize.mistakes import explained, refuse_experts
from stages.quantize.spec import QuantizeConfig
from stages.runtime.session import StageSession
from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.chat_template import reasoning_of, write_template
from stages.whitebox.checkpoint import GENERATION_FILE, load_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.document_scores import DocumentScores, documents_within, score_documents
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import QuantizedWeights, load_quantized, save_quantized
from stages.whitebox.reply import continuation, reply
from stages.whitebox.tokenizer import TOKENIZER_FILES, Tokenizer

DRIFT_TOKENS = 128


def run(
    config: QuantizeConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Write the int8 and the int4 model; fail if either lost more than the configuration allows."""
    with explained():
        threads = fix_threads(config.num_threads)
        model = load_model(inputs["model"], dtype=torch.float32)
        refuse_experts(model.config)
        session.log(f"{model.config.num_params():,} parameters, on {threads} CPU threads")
        weights = {
            INT8: quantize_nearest_everywhere(model, bits=8, group_size=None),
            INT4: _make_int4(config, model, inputs["tokens"], session),
        }
        for name, found in weights.items():
            _save(found, inputs, outputs[name])
        findings = _measure(config, model, inputs, outputs, session)
    show(findings, config, session)
    check_limits(findings, config)
    return findings.headline()


def _make_int4(
    config: QuantizeConfig, model: CausalLM, tokens: Path, session: StageSession
) -> QuantizedWeights:
    if config.int4_method == "nearest":
        return quantize_nearest_everywhere(model, bits=4, group_size=config.group_size)
    shards = TokenShards(tokens, "train")
    context_tokens = min(model.config.max_position_embeddings, shards.num_tokens)
    num_rows = math.ceil(config.calibration_tokens / context_tokens)
    rows = PackedBatches(shards, num_rows, context_tokens, config.seed).next_batch()["ids"]
    session.log(f"calibrating int4 on {rows.numel():,} tokens")
    num_layers = model.config.num_hidden_layers
    return quantize_calibrated(
        model, rows, 4, config.group_size, lambda done: session.progress(done, num_layers, "layers")
    )


def _save(weights: QuantizedWeights, inputs: Mapping[str, Path], folder: Path) -> None:
    """The folder opens on its own, so tokenizer and generation settings go with the weights."""
    save_quantized(weights, folder)
    shutil.copyfile(inputs["model"] / GENERATION_FILE, folder / GENERATION_FILE)
    for name in TOKENIZER_FILES:
        if (inputs["tokenizer"] / name).is_file():
            shutil.copyfile(inputs["tokenizer"] / name, folder / name)
    write_template(folder, reasoning_of(inputs["model"]))


def _measure(
    config: QuantizeConfig,
    model: CausalLM,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    session: StageSession,
) -> Findings:
    """Score, time and sample what was written, as a reader of the folders would get it."""
    exact = {FLOAT: model} | {name: load_quantized(outputs[name], fast_decode=False) for name in (INT8, INT4)}
    fast = {FLOAT: model} | {name: load_quantized(outputs[name]) for name in (INT8, INT4)}
    shards = TokenShards(inputs["tokens"], "validation")
    scores = _score(config, exact, shards, session)
    torch.set_num_threads(1)  # one row is too little work for two: they mostly wait for each other
    drift_ids = shards.document(int(shards.num_bytes.argmax()))[: min(DRIFT_TOKENS, _limit(model))].tolist()
    drift = {name: kernel_drift(fast[name], exact[name], drift_ids) for name in (INT8, INT4)}
    for name, nats in drift.items():
        kernels = ", ".join(fast[name].kernels())
        session.log(f"{name} decodes with {kernels}: {nats:+.5f} nats per token against the exact product")
    speeds = _time(config, fast, drift_ids[:SPEED_PROMPT_TOKENS], session)
    _sample(config, fast, Tokenizer.from_folder(inputs["tokenizer"]), session)
    folders = {FLOAT: inputs["model"], INT8: outputs[INT8], INT4: outputs[INT4]}
    sizes = {name: bytes_per_part(folder) for name, folder in folders.items()}
    return Findings(model.config.num_params(), scores, sizes, speeds, drift, config.seed)


def _score(
    config: QuantizeConfig, models: Mapping[str, CausalLM], shards: TokenShards, session: StageSession
) -> dict[str, DocumentScores]:
    device = pick_device().device
    documents = documents_within(shards, config.max_validation_bytes)
    scores: dict[str, DocumentScores] = {}
    for number, (name, model) in enumerate(models.items()):

        def progress(done: int, total: int, name: str = name, earlier: int = number) -> None:
            session.progress(earlier * total + done, len(models) * total, "windows", model=name)

        context_tokens = _limit(model)
        scores[name] = score_documents(
            model.to(device), shards, documents, context_tokens=context_tokens, on_scored=progress
        )
        model.to("cpu")
    return scores


def _time(
    config: QuantizeConfig, models: Mapping[str, CausalLM], prompt_ids: list[int], session: StageSession
) -> dict[str, list[float]]:
    if config.speed_tokens == 0:
        return {name: [] for name in models}
    total = config.speed_rounds + 1
    return decode_speeds(
        models,
        prompt_ids,
        config.speed_tokens,
        config.speed_rounds,
        lambda done: session.progress(done, total, "rounds"),
    )


def _sample(
    config: QuantizeConfig, models: Mapping[str, CausalLM], tokenizer: Tokenizer, session: StageSession
) -> None:
    for name, model in models.items():
        for prompt in config.sample_prompts:
            session.sample(prompt, continuation(model, tokenizer, prompt, config.sample_tokens), kind=name)
        for prompt in config.chat_prompts:
            messages = [{"role": "user", "content": prompt}]
            text = reply(model, tokenizer, messages, config.sample_tokens)
            session.sample(prompt, text, kind=f"{name} chat")


def _limit(model: CausalLM) -> int:
    return model.config.max_position_embeddings
