"""Trains again and again and kills each training with SIGKILL after a random step; prints what it did.

    python kill_program.py SHARDS FOLDER KILLS

It forks, so that only the first process waits for torch. FOLDER gets `killed.safetensors`, the weights of the
training that was killed KILLS times, and `whole.safetensors`, those of one that was not.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo  # the first step of an optimizer imports it: once here, and not in every fork
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.config import ModelConfig
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.trainer import StepLoss, TrainerSettings, train

TOTAL_STEPS = 60
CONFIG = ModelConfig.from_depth(1, vocab_size=61, max_position_embeddings=48)


def loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
    """With dropout, so that the generator's state matters too."""
    hidden = F.dropout(model.hidden_states(batch["ids"]), 0.1)
    return StepLoss(*cross_entropy_sum(hidden, model.output_weight(), batch["targets"]))


def tell(writing: int) -> None:
    """One more step is done."""
    os.write(writing, b".")


def train_in_a_fork(shards: Path, folder: Path, weights: Path, kill_after: int | None) -> bool:
    """Whether it came to its end; `kill_after` more steps it is killed, wherever it is by then."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        torch.manual_seed(0)
        model = CausalLM(CONFIG)
        train(
            model,
            PackedBatches(TokenShards(shards, "train"), 2, 16, seed=0),
            loss,
            TrainerSettings(
                TOTAL_STEPS, 3e-3, matrix_learning_rate=0.02, accumulation_steps=2, checkpoint_every_steps=2
            ),
            checkpoint_dir=folder,
            on_step=lambda _step, _values: tell(writing),
            log=lambda message: print(message, flush=True),
        )
        save_file(model.state_dict(), weights)
        os._exit(0)
    os.close(writing)
    steps = 0
    while os.read(reading, 1):
        steps += 1
        if steps == kill_after:
            os.kill(child, signal.SIGKILL)
    os.close(reading)
    return os.waitpid(child, 0)[1] == 0


def main(shards: Path, folder: Path, kills: int) -> None:
    """Kill, kill, ..., finish; and once without."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Each life must end before the run does, and long ones must not use it up.
    random_steps = random.Random(7)
    lives = [random_steps.randrange(1, 8) for _ in range(kills)]
    for kill_after in lives:
        finished = train_in_a_fork(shards, folder / "checkpoints", folder / "killed.safetensors", kill_after)
        print("finished" if finished else f"killed after {kill_after} steps", flush=True)
    assert train_in_a_fork(shards, folder / "checkpoints", folder / "killed.safetensors", None)
    assert train_in_a_fork(shards, folder / "other", folder / "whole.safetensors", None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
