"""Experts have other names in files than in memory.

In memory all experts of a layer are two tensors, which one grouped product reads. Files of the hub have three
small matrices per expert, which is what vLLM and llama.cpp read and what transformers 5 writes and reads too;
it can also leave them fused (`save_original_format=False`), and then a file has the names of memory.

Shapes: E experts, D width, F feed-forward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

FUSED, DOWN = "gate_up_proj", "down_proj"
_IN_FILE = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_IN_MEMORY = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")


def split_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of memory to names of files; all other tensors stay as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _IN_MEMORY.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        for number, matrix in enumerate(tensor):
            parts = matrix.chunk(2) if match[2] == FUSED else (matrix,)
            names = ("gate_proj", "up_proj") if match[2] == FUSED else (DOWN,)
            for part_name, part in zip(names, parts, strict=True):
                found[f"{match[1]}.{number}.{part_name}.weight"] = part.contiguous()
    return found


def fuse_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of files to names of memory; raises ValueError where an expert lacks a matrix."""
    matches = {name: match for name in weights if (match := _IN_FILE.fullmatch(name))}
    found = {name: tensor for name, tensor in weights.items() if name not in matches}
    for prefix in dict.fromkeys(match[1] for match in matches.values()):
        numbers = sorted({int(match[2]) for match in matches.values() if match[1] == prefix})
        found[f"{prefix}.{FUSED}"] = torch.stack([_gate_up(weights, prefix, number) for number in numbers])
        found[f"{prefix}.{DOWN}"] = torch.stack([_part(weights, prefix, number, DOWN) for number in numbers])
    return found


def _gate_up(weights: Mapping[str, Tensor], prefix: str, number: int) -> Tensor:
    return torch.cat([_part(weights, prefix, number, part) for part in ("gate_proj", "up_proj")])


def _part(weights: Mapping[str, Tensor], prefix: str, number: int, part: str) -> Tensor:
    name = f"{prefix}.{number}.{part}.weight"
    if name not in weights:
        raise ValueError(f"the weights lack {name}; an expert has gate_proj, up_proj and down_proj")
    return weights[name]
