"""One process of trainings in several, each described by a JSON object; the tests start it or call it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.config import ModelConfig
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.one_process import OneProcess
from stages.whitebox.rank_batches import RankBatches, Share
from stages.whitebox.snapshot import whole_model
from stages.whitebox.trainer import StepLoss, TrainerSettings, TrainingStopped, train

CONFIG = ModelConfig.from_depth(2, vocab_size=61, max_position_embeddings=48)
ROWS_PER_STEP = 5  # odd, so that two processes cannot share it evenly
TOTAL_STEPS = 8


def run_scenario(scenario: dict[str, Any], processes: OneProcess) -> None:
    """Train as told; the first process writes `losses.json` and `model.safetensors` into `folder`."""
    torch.manual_seed(0)
    model = CausalLM(CONFIG)
    processes.prepare(model)
    share = Share(ROWS_PER_STEP, processes.size, scenario.get("micro", 2))
    rows = PackedBatches(
        TokenShards(Path(scenario["shards"]), "train"), share.micro_batch_size, 16, 0, separate_documents=True
    )
    batches = RankBatches(rows, share, processes.rank)
    folder, lines = Path(scenario["folder"]), {}
    spoiled, stop_after = scenario.get("spoiled_step"), scenario.get("stop_after")
    messages: list[str] = []
    calls = 0

    def loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
        nonlocal calls
        calls += 1
        hidden = model.hidden_states(batch["ids"], batch["positions"], batch["document_ids"])
        nats, count = cross_entropy_sum(hidden, model.output_weight(), batch["targets"])
        is_bad = processes.rank == processes.size - 1 and calls == spoiled
        return StepLoss(
            nats * float("nan") if is_bad else nats,
            count,
            {"per_token": float(nats.detach()) / max(1, count)},
        )

    def evaluate() -> dict[str, float]:
        ids = torch.arange(4, 20)[None]
        weight = model.output_weight()  # taken before the model computes, as evaluation does
        nats, count = cross_entropy_sum(model.hidden_states(ids[:, :-1]), weight, ids[:, 1:])
        return {"validation_loss": float(nats) / count}

    settings = TrainerSettings(
        total_steps=TOTAL_STEPS,
        learning_rate=3e-3,
        matrix_learning_rate=scenario.get("muon"),
        warmup_steps=2,
        accumulation_steps=share.accumulation_steps,
        rows_per_step=ROWS_PER_STEP,
        grad_clip=0.5,
        evaluate_every_steps=4,
    )
    try:
        train(
            model,
            batches,
            loss,
            settings,
            checkpoint_dir=folder / "checkpoints",
            on_step=lambda step, values: lines.update({step: values}),
            evaluate=evaluate,
            # Only the last process hears of the stop; all have to.
            should_stop=lambda: processes.rank == processes.size - 1 and len(lines) == stop_after,
            log=messages.append,
            processes=processes,
        )
    except TrainingStopped as stopped:
        messages.append(str(stopped))
    whole = whole_model(model, processes)
    if processes.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "steps.json").write_text(json.dumps({"steps": lines, "messages": messages}))
        save_file(dict(whole.state_dict()), folder / "model.safetensors")


def main(path: str) -> None:
    """Join the others and go through the list in the file."""
    import torch.distributed as dist

    from stages.whitebox.distributed import Replicated, Sharded, process_group

    torch.set_num_threads(1)
    with process_group("ddp"):
        for scenario in json.loads(Path(path).read_text()):
            run_scenario(scenario, Sharded() if scenario["way"] == "fsdp" else Replicated())
            dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
