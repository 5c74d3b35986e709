"""Quantizing all matrices of a model, layer by layer, each on the inputs that it will really see.

Shapes: B batch, T tokens, D width, I inputs, P positions, H head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stages.quantize.gptq import quantize_gptq
from stages.quantize.rounding import quantize_nearest
from stages.whitebox.attention import Mask
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import EMBEDDING, OUTPUT, QuantizedWeights
from stages.whitebox.quantized_linear import IntegerMatrix

TABLE_BITS = 8


def quantize_nearest_everywhere(model: CausalLM, bits: int, group_size: int | None) -> QuantizedWeights:
    """Round-to-nearest for every layer matrix; `group_size` None gives one scale per output row."""
    matrices = {
        f"model.layers.{layer}.{name}": quantize_nearest(linear.weight, bits, group_size)
        for layer, block in enumerate(model.model.layers)
        for name, linear in _linears(block)
    }
    return _collect(model, matrices)


@torch.no_grad()
def quantize_calibrated(
    model: CausalLM,
    ids_BxT: Tensor,
    bits: int,
    group_size: int,
    on_layer: Callable[[int], None] = lambda _: None,
) -> QuantizedWeights:
    """GPTQ for every layer matrix, on the activations of `ids_BxT`.

    A layer is calibrated behind layers that are already quantized, so that it also makes up for their error.
    `model` itself stays as it is.

    Args:
        on_layer: called with the number of layers done.
    """
    rope, masks = model.rope(ids_BxT[:1]), model.masks(ids_BxT[:1])
    rows = [model.model.embed_tokens(row_1xT) for row_1xT in ids_BxT.split(1)]
    matrices: dict[str, IntegerMatrix] = {}
    for layer, block in enumerate(model.model.layers):
        hessians = _hessians(block, rows, rope, masks[layer])
        found = {
            name: quantize_gptq(linear.weight, hessians[name], bits, group_size)
            for name, linear in _linears(block)
        }
        with _weights_of(block, found):
            rows = [block(x_1xTxD, rope, masks[layer]) for x_1xTxD in rows]
        matrices |= {f"model.layers.{layer}.{name}": matrix for name, matrix in found.items()}
        on_layer(layer + 1)
    return _collect(model, matrices)


def _collect(model: CausalLM, matrices: dict[str, IntegerMatrix]) -> QuantizedWeights:
    """Adds embeddings and output matrix in 8 bits, and whatever is left (norms, biases) as it is."""
    tables = {EMBEDDING: model.model.embed_tokens.weight}
    if not model.config.tie_word_embeddings:
        tables[OUTPUT] = model.output_weight()
    matrices = {name: quantize_nearest(weight, TABLE_BITS) for name, weight in tables.items()} | matrices
    taken = {f"{name}.weight" for name in matrices}
    others = {name: tensor.float() for name, tensor in model.state_dict().items() if name not in taken}
    return QuantizedWeights(model.config, matrices, others)


def _linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _hessians(
    block: nn.Module, rows: list[Tensor], rope: tuple[Tensor, Tensor], mask: Mask | None
) -> dict[str, Tensor]:
    """Per linear of the block: the sum over all tokens of x x^T, IxI in float64."""
    sums: dict[str, Tensor] = {}
    hooks = []
    for name, linear in _linears(block):
        sums[name] = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)

        def add(_module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            x_TxI = inputs[0].flatten(0, -2)
            sums[name] += (x_TxI.T @ x_TxI).double()

        hooks.append(linear.register_forward_pre_hook(add))
    for x_1xTxD in rows:
        block(x_1xTxD, rope, mask)
    for hook in hooks:
        hook.remove()
    return sums


@contextmanager
def _weights_of(block: nn.Module, matrices: dict[str, IntegerMatrix]) -> Iterator[None]:
    """The block with dequantized weights, for as long as the context lasts."""
    originals = {name: linear.weight.data for name, linear in _linears(block)}
    try:
        for name, linear in _linears(block):
            linear.weight.data = matrices[name].dequantize()
        yield
    finally:
        for name, linear in _linears(block):
            linear.weight.data = originals[name]
