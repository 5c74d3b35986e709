"""Experts: the grouped product against the alternatives, and a whole layer against transformers', interleaved.

    python tests/benchmarks/grouped_products.py --threads 1

CPU milliseconds of one forward and backward pass, the best of `--rounds`. "loop" multiplies each expert's rows alone,
"padded" makes all experts' runs as long as the longest. The layers of transformers have the same weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox.config import ModelConfig
from stages.whitebox.experts import MixtureOfExperts, grouped_linear

NUM_TOKENS, WIDTH = 2048, 256
SHAPES = ((4, 1, 768), (8, 2, 384), (64, 4, 192), (64, 8, 96))


def loop(x_RxI: Tensor, weight_ExOxI: Tensor, counts_E: Tensor) -> Tensor:
    runs = zip(x_RxI.split(counts_E.tolist()), weight_ExOxI.unbind(), strict=True)
    return torch.cat([F.linear(rows_MxI, weight_OxI) for rows_MxI, weight_OxI in runs])


def padded(x_RxI: Tensor, weight_ExOxI: Tensor, counts_E: Tensor) -> Tensor:
    longest, starts_E = int(counts_E.max()), counts_E.cumsum(0) - counts_E
    expert_R = torch.arange(len(counts_E)).repeat_interleave(counts_E)
    place_R = torch.arange(len(x_RxI)) - starts_E[expert_R] + expert_R * longest
    room = x_RxI.new_zeros(len(counts_E) * longest, x_RxI.shape[1]).index_copy(0, place_R, x_RxI)
    y = torch.bmm(room.view(len(counts_E), longest, -1), weight_ExOxI.transpose(1, 2))
    return y.flatten(0, 1).index_select(0, place_R)


def milliseconds(contenders: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds + 1):  # the first round warms up
        for name, forward in contenders.items():
            started = time.process_time()
            forward().square().sum().backward()
            best[name] = min(best[name], 1000 * (time.process_time() - started))
    return best


def products(num_experts: int, chosen: int, size: int) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x_RxI = torch.randn(NUM_TOKENS * chosen, WIDTH, generator=generator, requires_grad=True)
    weight_ExOxI = torch.randn(num_experts, size, WIDTH, generator=generator, requires_grad=True)
    popularity_E = torch.rand(num_experts, generator=generator)
    rows = torch.multinomial(popularity_E, len(x_RxI), replacement=True, generator=generator)
    counts_E = rows.bincount(minlength=num_experts)
    ways = {"grouped": grouped_linear, "loop": loop, "padded": padded}
    return {name: lambda way=way: way(x_RxI, weight_ExOxI, counts_E) for name, way in ways.items()}


def layers(num_experts: int, chosen: int, size: int) -> dict[str, Callable[[], Tensor]]:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock

    config = ModelConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=num_experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=size,
    )
    ours = MixtureOfExperts(config)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x_BxTxD = torch.randn(4, NUM_TOKENS // 4, WIDTH, requires_grad=True)
    found: dict[str, Callable[[], Tensor]] = {"ours": lambda: ours(x_BxTxD)}
    for name in ("eager", "grouped_mm"):
        peer_config = Qwen3MoeConfig(**config.to_hf())
        peer_config._experts_implementation = name
        peer = Qwen3MoeSparseMoeBlock(peer_config)
        peer.load_state_dict(ours.state_dict())
        torch.testing.assert_close(peer(x_BxTxD), ours(x_BxTxD), atol=1e-4, rtol=1e-4)
        found[f"transformers {name}"] = lambda peer=peer: peer(x_BxTxD)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for make in (products, layers):
        for shape in SHAPES:
            best = milliseconds(make(*shape), arguments.rounds)
            first = next(iter(best.values()))
            cells = [f"{name} {value:.1f} ({value / first:.2f})" for name, value in best.items()]
            print(f"{shape[0]} experts of {shape[2]}, {shape[1]} a token: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
