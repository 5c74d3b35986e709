"""Do SFT and DPO help? Several seeds, with intervals, from one base model.

    glassworks build --until pretrain --store STORE [--source ...]
    python tests/benchmarks/alignment_effect.py STORE [--preset laptop] [--set sft.epochs=1] [--seeds 3]

For each seed SFT trains the base model in full and with LoRA, and DPO goes on from the full one. Printed: what
held-out data say before and after, with Student's intervals over seeds, and four verdicts:

    SFT lowers the loss on the assistant's words
    SFT raises the share of answers that keep to the format: they end by themselves, say something, and hold no
        control token but those of a well-formed tool call, where one is due and nowhere else
    LoRA comes within 3 % of full fine-tuning's loss
    DPO tells held-out chosen from rejected answers with more than 0.6, for at most 2 % more bits per byte

Results and models are kept in STORE/effect: a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from muon_against_adamw import interval

from data_contracts.tables import read_rows
from flows.settings import BuildSettings, build_settings
from stages.dpo.run import run as run_dpo
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.runtime.spec import StageConfig
from stages.sft.run import run as run_sft
from stages.whitebox.chat_format import (
    IM_END,
    messages_from_columns,
    parse_completion,
    render,
    tools_from_column,
)
from stages.whitebox.checkpoint import load_model
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

RUNS: Mapping[str, Callable[..., dict[str, float]]] = {"sft": run_sft, "dpo": run_dpo}
LORA = {"adapter": "lora"}
ANSWER_TOKENS = 128


class Bench:
    """A store's newest artifacts, and the runs made from them so far."""

    def __init__(self, store: Path, settings: BuildSettings) -> None:
        self.settings, self.folder = settings, store / "effect"
        corpus, tokenizer, base = (newest(store, stage) for stage in ("corpus_prep", "tokenizer", "pretrain"))
        self.parts = {
            "conversations": corpus / "conversations",
            "preferences": corpus / "preferences",
            "scenarios": corpus / "scenarios",
            "tokenizer": tokenizer / "tokenizer",
            "tokens": tokenizer / "tokens",
        }
        self.base = base / "model"

    def of(self, stage: str, model: Path, **changes: Any) -> tuple[Path, dict[str, float]]:
        """The model that `stage` makes of `model` with these settings, and its metrics."""
        config = self.settings.configs[stage].model_copy(update=changes)
        key = json.dumps([stage, str(model), config.model_dump(mode="json")], sort_keys=True)
        folder = self.folder / f"{stage}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if not (folder / "metrics.json").is_file():
            self._run(stage, config, model, folder)
        return folder / "model", json.loads((folder / "metrics.json").read_text())

    def _run(self, stage: str, config: StageConfig, model: Path, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        outputs = {"model": folder / "model", "preview": folder / "preview"}
        for part in (*outputs.values(), folder / "work"):
            part.mkdir(parents=True)
        with (folder / "log").open("w") as quiet:
            session = StageSession(
                stage, folder / "work", EventLog(folder / "events", as_json=False, stream=quiet)
            )
            metrics = RUNS[stage](config, {**self.parts, "model": model}, outputs, session)
        metrics["keeps_format"] = self.keeps_format(outputs["model"])
        (folder / "metrics.json").write_text(json.dumps(metrics))
        print(f"{stage} seed {getattr(config, 'seed', 0)}: {folder.name}", flush=True)

    def keeps_format(self, folder: Path, count: int = 64) -> float:
        """Share of held-out first turns that the model answers in the chat format."""
        tokenizer = Tokenizer.from_folder(self.parts["tokenizer"])
        model = load_model(folder, dtype=torch.float32)
        held_out = [row for row in read_rows(self.parts["conversations"]) if row["split"] == "validation"]
        step = max(1, len(held_out) // count)
        kept = [answers_in_format(model, tokenizer, row) for row in held_out[::step][:count]]
        return sum(kept) / len(kept)


def newest(store: Path, stage: str) -> Path:
    """The youngest artifact of a stage."""
    found = list(store.glob(f"artifacts/{stage}/*/manifest.json"))
    if not found:
        raise SystemExit(f"{store} has no {stage}; first: glassworks build --until pretrain --store {store}")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def answers_in_format(model: CausalLM, tokenizer: Tokenizer, row: Mapping[str, Any]) -> bool:
    """Whether the model's first answer in this conversation keeps to the format; see above."""
    messages = messages_from_columns(row["messages"])
    turn = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    tools = tools_from_column(row["tools"])
    prompt = render(messages[:turn], tokenizer, add_generation_prompt=True, tools=tools).ids
    room = min(ANSWER_TOKENS, model.config.context_limit - len(prompt))
    if turn == 0 or room < 8:
        return False
    ids = generate(model, prompt, max_new_tokens=room, stop_ids=[tokenizer.eos_id])
    if (end := tokenizer.special_id(IM_END)) not in ids:
        return False
    answer = parse_completion(ids, tokenizer)
    calls, said = answer["tool_calls"], answer["content"].strip()
    num_control = sum(tokenizer.is_special(token) for token in ids[: ids.index(end)])
    well_formed = num_control == 2 * len(calls)
    return well_formed and (bool(calls) if messages[turn]["tool_calls"] else bool(said) and not calls)


def main() -> None:
    options = parse_arguments()
    bench = Bench(options.store, build_settings(options.preset, changes=options.changes))
    base_format = bench.keeps_format(bench.base)
    full, lora, dpo = [], [], []
    for seed in range(options.seeds):
        model, metrics = bench.of("sft", bench.base, seed=seed)
        full.append(metrics)
        lora.append(bench.of("sft", bench.base, seed=seed, **LORA)[1])
        # What it costs is a figure here, and no reason to stop.
        dpo.append(bench.of("dpo", model, seed=seed, on_degradation="warn")[1])
    print_table(base_format, full, lora, dpo)


def print_table(base_format: float, full: list[Any], lora: list[Any], dpo: list[Any]) -> None:
    """One row a figure: before, after with interval, and whether it is what was hoped for."""
    ratios = [a["validation_loss"] / b["validation_loss"] for a, b in zip(lora, full, strict=True)]
    costs = [r["bits_per_byte_increase"] / r["sft_validation_bits_per_byte"] for r in dpo]
    of = "validation_loss"
    rows = [
        ("SFT: loss on the assistant's words", full[0][f"base_{of}"], values(full, of), "below"),
        ("SFT: answers that keep the format", base_format, values(full, "keeps_format"), "above"),
        ("LoRA: its loss / full fine-tuning's", 1.03, ratios, "below"),
        ("DPO: accuracy on held-out pairs", 0.6, values(dpo, "validation_accuracy"), "above"),
        ("DPO: share of bits per byte lost", 0.02, costs, "below"),
        (
            "DPO: answers that keep the format",
            sum(values(full, "keeps_format")) / len(full),
            values(dpo, "keeps_format"),
            "",
        ),
    ]
    print("\n| | before, or bound | each seed | mean (95 % interval) | |")
    print("|---|---|---|---|---|")
    for name, bound, found, wanted in rows:
        mean, low, high = interval(found)
        each = ", ".join(f"{value:.3f}" for value in found)
        print(
            f"| {name} | {bound:.3f} | {each} | {mean:.3f} ({low:.3f} to {high:.3f}) | {verdict(bound, low, high, wanted)} |"
        )


def values(runs: list[Any], name: str) -> list[float]:
    """One metric of all runs."""
    return [run[name] for run in runs]


def verdict(bound: float, low: float, high: float, wanted: str) -> str:
    """Whether the whole interval is on the side that was hoped for."""
    if not wanted:
        return ""
    return wanted if (high < bound if wanted == "below" else low > bound) else f"not shown to be {wanted}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="STAGE.FIELD=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
