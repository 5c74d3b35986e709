"""Tokens per second of one training step, ours and transformers', interleaved in one run.

    python tests/benchmarks/pretrain_step.py --depth 4 --vocab-size 4096 --context-tokens 256

Both have the same shape, the same batch, AdamW fused and the norm clipped at 1. Times are the process's CPU
time over threads and the wall clock's; on a shared machine trust the ratio, which other load changes least.
`--rounds 3` interleaves each contender three times and keeps its best.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from stages.whitebox.config import ModelConfig
from stages.whitebox.device import pick_device
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.optim import build_adamw, build_muon

Step = Callable[[], None]


class Timing(NamedTuple):
    """The best of all rounds."""

    wall_seconds: float
    cpu_seconds: float


def our_step(config: ModelConfig, ids: torch.Tensor, dtype: torch.dtype, muon: bool, compiled: bool) -> Step:
    model = CausalLM(config).train()
    if compiled:
        model.compile_blocks()
    optimizers = build_muon(model, 0.01, 0.01) if muon else [build_adamw(model, 1e-3)]

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            hidden = model.hidden_states(ids[:, :-1])
            loss, num_targets = cross_entropy_sum(hidden, model.output_weight(), ids[:, 1:])
        loss.backward()
        grads = [p.grad for p in model.parameters()]
        norm = float(torch.nn.utils.get_total_norm(grads)) / num_targets
        torch._foreach_mul_(grads, min(1.0, 1 / norm) / num_targets)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def their_step(config: ModelConfig, ids: torch.Tensor, dtype: torch.dtype) -> Step:
    import transformers

    peer = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config.to_hf())
    ).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = peer(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(contenders: dict[str, Step], rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """Best times of each contender, and the seconds of its first step (compilation)."""
    first = {}
    for name, step in contenders.items():
        started = time.perf_counter()
        step()
        first[name] = time.perf_counter() - started
    best = dict.fromkeys(contenders, Timing(float("inf"), float("inf")))
    for _ in range(rounds):
        for name, step in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = Timing(min(best[name].wall_seconds, wall), min(best[name].cpu_seconds, cpu))
    return best, first


def matmul_gflops(dtype: torch.dtype, size: int = 1024, repeats: int = 5) -> float:
    """Best of a few square products, to see whether a type has instructions of its own here."""
    a, b = torch.randn(2, size, size).to(dtype).unbind(0)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    print(f"chosen here: {pick_device()}")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"{dtype} matrix product: {matmul_gflops(dtype):.0f} GFLOP/s")
    config = ModelConfig.from_depth(options.depth, options.vocab_size, options.context_tokens)
    ids = torch.randint(4, options.vocab_size, (options.rows, options.context_tokens + 1))
    dtype = pick_device().compute_dtype
    contenders = {
        "transformers": their_step(config, ids, dtype),
        "ours, AdamW": our_step(config, ids, dtype, muon=False, compiled=False),
        "ours, Muon": our_step(config, ids, dtype, muon=True, compiled=False),
    }
    if options.compile:
        contenders["ours, AdamW, compiled"] = our_step(config, ids, dtype, muon=False, compiled=True)
    best, first = measure(contenders, options.rounds)
    print_table(config, options, best, first)


def print_table(
    config: ModelConfig, options: argparse.Namespace, best: dict[str, Timing], first: dict[str, float]
) -> None:
    tokens = options.rows * options.context_tokens
    print(
        f"\ndepth {options.depth}, {config.num_params() / 1e6:.1f}M parameters, vocabulary {config.vocab_size}, "
        f"{options.rows} x {options.context_tokens} tokens, {options.threads} threads\n"
    )
    print("| variant | tokens/s | tokens per CPU second | GFLOP/s | ratio | first step |")
    print("|---|---|---|---|---|---|")
    base = best["transformers"].cpu_seconds
    for name, timing in best.items():
        gflops = config.flops_per_token(options.context_tokens) * tokens / timing.wall_seconds / 1e9
        print(
            f"| {name} | {tokens / timing.wall_seconds:,.0f} | {tokens / timing.cpu_seconds:,.0f} | {gflops:.0f} "
            f"| {base / timing.cpu_seconds:.2f} | {first[name]:.1f} s |"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context-tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="1 measures best on a shared machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also the compiled variant")
    return parser.parse_args()


if __name__ == "__main__":
    main()
