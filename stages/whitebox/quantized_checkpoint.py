"""A quantized model as a folder that transformers opens through compressed-tensors, and back.

    layers       `pack-quantized`: weight_packed (32-bit words), weight_scale, weight_shape
    embeddings   `int-quantized`: weight (int8), weight_scale. A tied output matrix is the same table, stored
                 once; only its scales stand a second time, under lm_head, where the reader looks for them.
    norms        as they were, float32; so are biases

Why two formats: a packed table cannot be tied, and embeddings are half of a small model.

Shapes: O outputs, I inputs, G groups of inputs, V vocabulary, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.whitebox.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from stages.whitebox.config import ModelConfig
from stages.whitebox.decode_kernels import pick_exact_kernel
from stages.whitebox.empty import without_values
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_linear import (
    IntegerMatrix,
    QuantizedEmbedding,
    QuantizedLinear,
    pack_words,
    unpack_words,
)

EMBEDDING, OUTPUT = "model.embed_tokens", "lm_head"
_TABLES = (EMBEDDING, OUTPUT)


@dataclass(frozen=True)
class QuantizedWeights:
    """All weights of a model: integer matrices by module name, everything else by tensor name."""

    config: ModelConfig
    matrices: Mapping[str, IntegerMatrix] = field(default_factory=dict)
    others: Mapping[str, Tensor] = field(default_factory=dict)


class QuantizedLM(CausalLM):
    """A `CausalLM` whose matrices are integers. It decodes and scores; it cannot be trained.

    With `fast_decode`, one row at a time goes through the kernels of `decode_kernels`, within their rounding
    of the exact product. Without, every product is the float32 one: for scores that are compared.

    Raises:
        ValueError: the weights are not those of the config.
    """

    def __init__(self, weights: QuantizedWeights, fast_decode: bool = True) -> None:
        with without_values():
            super().__init__(weights.config)
        for name, matrix in weights.matrices.items():
            _replace(self, name, matrix, fast_decode)
        leftover = self.load_state_dict(dict(weights.others), strict=False, assign=True).unexpected_keys
        if leftover:
            raise ValueError(f"no module of config.json takes {', '.join(sorted(leftover)[:3])}")
        self.requires_grad_(False).eval()
        self.output_kernel = None
        head = self.model.embed_tokens if weights.config.tie_word_embeddings else self.lm_head
        if fast_decode and isinstance(head, QuantizedEmbedding | QuantizedLinear):
            self.output_kernel = pick_exact_kernel(head.values, head.scales, head.bits)

    def kernels(self) -> list[str]:
        """What single rows are multiplied with, in words; several where layers differ."""
        layers = [module.kernel for module in self.modules() if isinstance(module, QuantizedLinear)]
        names = {kernel.name if kernel else "float32" for kernel in [*layers, self.output_kernel]}
        return sorted(names)

    def logits(self, h_D: Tensor) -> Tensor:
        """As `CausalLM.logits`; a single row goes through the exact kernel."""
        if self.output_kernel is not None and h_D.numel() == self.config.hidden_size and h_D.is_cpu:
            return self.output_kernel.multiply(h_D.view(1, -1)).view(*h_D.shape[:-1], -1)
        return super().logits(h_D)


def save_quantized(weights: QuantizedWeights, folder: Path) -> None:
    """Writes weights and config.json; the same weights give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.others.items()}
    for name, matrix in weights.matrices.items():
        tensors |= _table_tensors(name, matrix) if name in _TABLES else _packed_tensors(name, matrix)
    if weights.config.tie_word_embeddings and EMBEDDING in weights.matrices:
        tensors[f"{OUTPUT}.weight_scale"] = weights.matrices[EMBEDDING].scales_OxG.clone()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files that only their owner may read
    content = {**weights.config.to_hf(), "quantization_config": quantization_config(weights)}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_quantized(folder: Path, device: torch.device | str = "cpu", fast_decode: bool = True) -> QuantizedLM:
    """Opens a folder that `save_quantized` wrote.

    Args:
        fast_decode: use kernels that read integers for single rows on a CPU; see `QuantizedLM`.

    Raises:
        ValueError: the folder holds no quantized model, or its tensors are not those of its config.json.
    """
    model = QuantizedLM(read_quantized(folder), fast_decode)
    if missing := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise ValueError(f"{Path(folder) / WEIGHTS_FILE} lacks {', '.join(missing[:3])}; quantize anew")
    return model.to(device)


def read_quantized(folder: Path) -> QuantizedWeights:
    """The weights of a folder as they are stored. Raises ValueError like `load_quantized`."""
    folder = Path(folder)
    fields = _read_config(folder)
    config = ModelConfig.from_hf(fields)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is no whole safetensors file: {error}") from error
    if config.tie_word_embeddings:
        tensors.pop(f"{OUTPUT}.weight_scale", None)
    bits = _layer_bits(folder, fields)
    names = [key.removesuffix(".weight_scale") for key in tensors if key.endswith(".weight_scale")]
    matrices = {name: _take_matrix(folder, tensors, name, bits) for name in names}
    return QuantizedWeights(config, matrices, tensors)


def quantization_config(weights: QuantizedWeights) -> dict[str, Any]:
    """What config.json says about the integers, in the terms of compressed-tensors."""
    groups: list[dict[str, Any]] = []
    if EMBEDDING in weights.matrices:
        targets = [f"re:.*{name.rpartition('.')[2]}$" for name in _TABLES]
        table = weights.matrices[EMBEDDING]
        groups.append({"targets": targets, "weights": _scheme(table), "format": "int-quantized"})
    layers = [matrix for name, matrix in weights.matrices.items() if name not in _TABLES]
    groups.append({"targets": ["Linear"], "weights": _scheme(layers[0]), "format": "pack-quantized"})
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if len(groups) > 1 else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [] if EMBEDDING in weights.matrices else [OUTPUT],
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
    }


def _scheme(matrix: IntegerMatrix) -> dict[str, Any]:
    shared = {"num_bits": matrix.bits, "type": "int", "symmetric": True, "dynamic": False}
    if matrix.scales_OxG.shape[1] == 1 and matrix.bits == 8:
        return {**shared, "strategy": "channel"}
    return {**shared, "strategy": "group", "group_size": matrix.group_size}


def _table_tensors(name: str, matrix: IntegerMatrix) -> dict[str, Tensor]:
    return {f"{name}.weight": matrix.values_OxI, f"{name}.weight_scale": matrix.scales_OxG}


def _packed_tensors(name: str, matrix: IntegerMatrix) -> dict[str, Tensor]:
    return {
        f"{name}.weight_packed": pack_words(matrix.values_OxI, matrix.bits),
        f"{name}.weight_scale": matrix.scales_OxG,
        f"{name}.weight_shape": torch.tensor(matrix.values_OxI.shape),
    }


def _take_matrix(folder: Path, tensors: dict[str, Tensor], name: str, bits: int) -> IntegerMatrix:
    """Removes the tensors of one module from `tensors` and builds its matrix."""
    scales = tensors.pop(f"{name}.weight_scale")
    try:
        if name in _TABLES:
            return IntegerMatrix(tensors.pop(f"{name}.weight"), scales, 8)
        columns = int(tensors.pop(f"{name}.weight_shape")[1])
        values = unpack_words(tensors.pop(f"{name}.weight_packed"), bits)[:, :columns].contiguous()
    except KeyError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE}: {name} has scales but no tensor {error}") from error
    return IntegerMatrix(values, scales, bits)


def _layer_bits(folder: Path, fields: Mapping[str, Any]) -> int:
    """Bits per weight of the layers, from the group that targets every linear."""
    groups = fields["quantization_config"].get("config_groups", {}).values()
    bits = [group["weights"]["num_bits"] for group in groups if "Linear" in group["targets"]]
    if len(bits) != 1 or bits[0] not in (4, 8):
        raise ValueError(f"{folder / CONFIG_FILE} describes layers of {bits} bits; this code reads 4 or 8")
    return int(bits[0])


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected a quantized model's folder") from error
    if "quantization_config" not in fields:
        raise ValueError(f"{path} has no quantization_config: a float model, open it with load_model")
    return fields


def _replace(model: nn.Module, name: str, matrix: IntegerMatrix, fast_decode: bool) -> None:
    parent_name, _, child = name.rpartition(".")
    try:
        parent = model.get_submodule(parent_name)
        shape = tuple(getattr(parent, child).weight.shape)
    except AttributeError as error:
        raise ValueError(f"the weights have a matrix {name}, config.json describes no such module") from error
    if shape != tuple(matrix.values_OxI.shape):
        raise ValueError(f"{name} has shape {tuple(matrix.values_OxI.shape)}, config.json asks for {shape}")
    if name == EMBEDDING:
        setattr(parent, child, QuantizedEmbedding(matrix))
    else:
        # The output matrix has its own, exact kernel. The bias's numbers come with the other tensors.
        bias_O = getattr(parent, child).bias
        bias_O = None if bias_O is None else bias_O.detach()
        setattr(parent, child, QuantizedLinear(matrix, fast_decode and name != OUTPUT, bias_O))
