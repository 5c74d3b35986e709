"""Keys and values of the tokens that a model has already read, so that decoding reads each token once.

Shapes: B batch, T new tokens, S cached tokens (capacity), L layers, K key/value heads, H head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.whitebox.config import ModelConfig


class KVCache:
    """Room for `max_tokens` tokens per row; `length` of them are filled, the same in all rows."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, max_tokens, config.head_dim)
        self.keys_LxBxKxSxH = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LxBxKxSxH = torch.zeros(shape, dtype=dtype, device=device)
        self.max_tokens = max_tokens
        self.length = 0

    def extend(self, layer: int, k_BxKxTxH: Tensor, v_BxKxTxH: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new tokens of one layer behind the filled part; returns that layer's keys and values.

        `length` moves only with `advance`, after the last layer has written.

        Raises:
            ValueError: the new tokens do not fit.
        """
        end = self.length + k_BxKxTxH.shape[2]
        if end > self.max_tokens:
            raise ValueError(f"{end} tokens do not fit a cache of {self.max_tokens}; make max_tokens larger")
        keys_BxKxSxH, values_BxKxSxH = self.keys_LxBxKxSxH[layer], self.values_LxBxKxSxH[layer]
        keys_BxKxSxH[:, :, self.length : end] = k_BxKxTxH
        values_BxKxSxH[:, :, self.length : end] = v_BxKxTxH
        return keys_BxKxSxH[:, :, :end], values_BxKxSxH[:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Counts tokens as filled that every layer has written."""
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on, to try another continuation of the same beginning.

        Raises:
            ValueError: fewer tokens than that are filled.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may be taken several times, or not at all."""
        self.keys_LxBxKxSxH = self.keys_LxBxKxSxH.index_select(1, rows)
        self.values_LxBxKxSxH = self.values_LxBxKxSxH.index_select(1, rows)
