"""The shapes of the table of expected losses: the dial, and the published ones."""

from __future__ import annotations

from stages.whitebox.config import ModelConfig
from stages.whitebox.shapes import SHAPES

LONGEST_CONTEXT = 1024
"""Published contexts of 32k and more are what a model reads at last, and not what it is pretrained with."""


def shapes(vocab_size: int) -> dict[str, ModelConfig]:
    """Name -> shape, the smallest first; those of the `depth` dial have `vocab_size` tokens."""
    dial = {
        f"depth {depth}": ModelConfig.from_depth(depth, vocab_size, max_position_embeddings=256)
        for depth in (1, 2, 3, 4, 6)
    }
    dial |= {
        f"depth {depth}, 16k": ModelConfig.from_depth(depth, 16_384, max_position_embeddings=1024)
        for depth in (8, 12, 16, 20)
    }
    published = {
        name: shape.config(context_tokens=min(shape.context_tokens, LONGEST_CONTEXT))
        for name, shape in SHAPES.items()
    }
    return dict(sorted({**dial, **published}.items(), key=lambda item: item[1].num_params()))
