"""One process of trainings in several, each described by a JSON object; the tests start it or call it."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.config import ModelConfig
from stages.whitebox.divided_tensors import whole as whole_tensor
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.one_process import OneProcess
from stages.whitebox.rank_batches import RankBatches, Share
from stages.whitebox.snapshot import whole_model
from stages.whitebox.trainer import StepLoss, TrainerSettings, TrainingStopped, train

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

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


def divide_products(layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Tensor parallel (Shoeybi et al. 2019, arXiv:1909.08053), by names alone."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    by_columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    by_rows = ("self_attn.o_proj", "mlp.down_proj")
    plan = {name: ColwiseParallel() for name in by_columns} | {name: RowwiseParallel() for name in by_rows}
    for layer in layers:
        parallelize_module(layer, mesh, plan)


def compare_divided_products(folder: Path) -> None:
    """The hidden states and two gradients of a model and of the same with divided products."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.manual_seed(0)
    whole = CausalLM(replace(CONFIG, num_attention_heads=4, num_key_value_heads=2, head_dim=32))
    divided = copy.deepcopy(whole)
    divide_products(divided.model.layers, init_device_mesh("cpu", (2,)))
    ids = torch.randint(0, CONFIG.vocab_size, (2, 16))
    found: dict[str, Tensor] = {}
    for name, model in (("whole", whole), ("divided", divided)):
        hidden = model.hidden_states(ids)
        hidden.square().sum().backward()
        layer = model.model.layers[0]
        found[f"{name}.hidden"] = hidden.detach()
        found[f"{name}.embedding"] = model.model.embed_tokens.weight.grad
        found[f"{name}.down"] = whole_tensor(layer.mlp.down_proj.weight.grad)
        found[f"{name}.q"] = whole_tensor(layer.self_attn.q_proj.weight.grad)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, folder / "compared.safetensors")


def main(path: str) -> None:
    """Join the others and go through the list in the file."""
    import torch.distributed as dist

    from stages.whitebox.distributed import Replicated, Sharded, process_group

    torch.set_num_threads(1)
    with process_group("ddp"):
        for scenario in json.loads(Path(path).read_text()):
            if scenario["way"] == "tensor":
                compare_divided_products(Path(scenario["folder"]) / str(dist.get_rank()))
                continue
            run_scenario(scenario, Sharded() if scenario["way"] == "fsdp" else Replicated())
            dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
