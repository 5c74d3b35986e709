"""What quantizing costs and brings: bytes on disk, decoding speed, and what the decoding kernels change.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from data_contracts.contract import safetensors_header
from stages.whitebox.checkpoint import WEIGHTS_FILE
from stages.whitebox.generate import generate
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.model import CausalLM

PARTS = ("embeddings", "layers", "norms")
SPEED_PROMPT_TOKENS = 8


def bytes_per_part(folder: Path) -> dict[str, int]:
    """Bytes of a checkpoint's tensors by what they are; scales count with the weights that they scale."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, entry in safetensors_header(folder / WEIGHTS_FILE).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            sizes[_part_of(name)] += end - start
    return sizes


def _part_of(name: str) -> str:
    if "embed_tokens" in name or name.startswith("lm_head"):
        return "embeddings"
    return "norms" if "norm" in name else "layers"


def decode_speeds(
    models: Mapping[str, CausalLM],
    prompt_ids: Sequence[int],
    num_tokens: int,
    num_rounds: int,
    on_round: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Tokens per second of greedy decoding, one figure per model and round.

    All models take turns within a round, so that whatever else the machine does slows all of them; compare
    figures of one round. A first round warms up and is not counted.
    """
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(num_rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            new_ids = generate(model, prompt_ids, max_new_tokens=num_tokens, stop_ids=())
            if number > 0:
                speeds[name].append(len(new_ids) / (time.perf_counter() - start))
        on_round(number + 1)
    return speeds


def median_ratio(speeds: Sequence[float], reference: Sequence[float]) -> float:
    """How many times as fast as the reference, as the median over rounds."""
    return statistics.median(speed / base for speed, base in zip(speeds, reference, strict=True))


@torch.no_grad()
def kernel_drift(fast: CausalLM, exact: CausalLM, ids: Sequence[int]) -> float:
    """Mean change of -log p, in nats per token, from reading `ids` one by one with the decoding kernels.

    Args:
        fast, exact: the same weights, with the kernels and without.
    """
    ids_1xT = torch.tensor([list(ids)])
    cache = KVCache(fast.config, 1, len(ids))
    steps = [fast(ids_1xT[:, place : place + 1], cache=cache)[0] for place in range(len(ids) - 1)]
    targets_Tx1 = ids_1xT[0, 1:, None]
    one_by_one_T = torch.cat(steps).log_softmax(dim=-1).gather(1, targets_Tx1)
    at_once_T = exact(ids_1xT[:, :-1])[0].log_softmax(dim=-1).gather(1, targets_Tx1)
    return float((at_once_T - one_by_one_T).mean())
