"""Tokens per second of batched rollouts against one-by-one decoding, on the same prompts, interleaved.

    python tests/benchmarks/rollout_speed.py [--model FOLDER] [--prompts 8] [--group 8] [--tokens 64]

Without a folder the model is one of 3 layers and width 192 with random weights. CPU seconds, one thread, best
of three rounds. Both draw with temperature 1; nothing stops a row, so that both write equally many tokens.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stages.whitebox.checkpoint import load_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.rollout import Sampling, roll_out

ROUNDS = 3


def cpu_seconds(work: Callable[[], int]) -> tuple[int, float]:
    """What `work` returns, and the processor's time that it took."""
    started = time.process_time()
    return work(), time.process_time() - started


def batched(model: CausalLM, prompts: list[list[int]], tokens: int) -> int:
    """Rollouts of all prompts together; the number of tokens."""
    found = roll_out(
        model,
        prompts,
        max_new_tokens=tokens,
        stop_ids=[],
        sampling=Sampling(),
        seeds=range(len(prompts)),
    )
    return sum(rollout.num_sampled for rollout in found)


def one_by_one(model: CausalLM, prompts: list[list[int]], tokens: int) -> int:
    """The same with `generate`."""
    settings = {"max_new_tokens": tokens, "stop_ids": [], "temperature": 1.0}
    return sum(len(generate(model, p, seed=i, **settings)) for i, p in enumerate(prompts))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = ModelConfig(4096, 192, 512, 3, 3, 1, 64, max_position_embeddings=256)
    model = (load_model(options.model) if options.model else CausalLM(shape)).float().eval()
    rng = random.Random(0)
    lengths = [rng.randint(8, 32) for _ in range(options.prompts)]
    different = [[rng.randrange(4, model.config.vocab_size) for _ in range(n)] for n in lengths]
    prompts = [prompt for prompt in different for _ in range(options.group)]
    best = {"batched rollouts": 0.0, "one-by-one generate()": 0.0}
    for _ in range(ROUNDS):
        for name, work in zip(best, (batched, one_by_one), strict=True):
            tokens, seconds = cpu_seconds(lambda work=work: work(model, prompts, options.tokens))
            best[name] = max(best[name], tokens / seconds)
    print(f"{options.prompts} prompts x {options.group} samples x {options.tokens} tokens, one thread")
    for name, speed in best.items():
        print(f"{name:24} {speed:10,.0f} tokens per CPU second")
    ours, theirs = best.values()
    print(f"{'ratio':24} {ours / theirs:10.1f}")


if __name__ == "__main__":
    main()
