"""The decoder: token embedding, layers of attention and gated feed-forward, norm, output matrix.

Parameter names are Hugging Face's, so that the weights open elsewhere unchanged.

Shapes: B batch, T tokens, S cached and new tokens, D width, F feed-forward, V vocabulary, H head size, P
positions.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.whitebox.attention import Attention, continuation_mask, document_mask
from stages.whitebox.config import ModelConfig
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.norm import RMSNorm
from stages.whitebox.rope import rope_tables
from stages.whitebox.swiglu import swiglu

INITIAL_STD = 0.02


class FeedForward(nn.Module):
    """SwiGLU: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        """Returns y_BxTxD."""
        return self.down_proj(swiglu(self.gate_proj(x_BxTxD), self.up_proj(x_BxTxD)))


class Block(nn.Module):
    """One layer; both halves read a normalised copy and add to the residual stream (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x_BxTxD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_Bx1xTxS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Returns the residual stream behind this layer, BxTxD."""
        x_BxTxD = x_BxTxD + self.self_attn(self.input_layernorm(x_BxTxD), rope, mask_Bx1xTxS, cache)
        return x_BxTxD + self.mlp(self.post_attention_layernorm(x_BxTxD))


class Decoder(nn.Module):
    """Everything below the output matrix; its own module because Hugging Face's names begin with `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module):
    """A causal language model. Its weights come from the global random state of torch, or `load_model`.

    Attributes:
        activation_checkpointing: in training keep only each layer's input, and compute the layer again in the
            backward pass (Chen et al. 2016, arXiv:1604.06174): the same gradients for a third more work.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rope_tables: tuple[Tensor, Tensor] | None = None
        self._run_block = _run_block
        self.activation_checkpointing = False
        self.init_weights()

    def init_weights(self) -> None:
        """Draws all weights anew.

        | weight                | values                          |
        |-----------------------|---------------------------------|
        | norms                 | 1                               |
        | embeddings, output    | normal, 0.02                    |
        | matrices              | normal, 0.02                    |
        | o_proj, down_proj     | normal, 0.02 / sqrt(2 x layers) |

        The last row keeps the residual stream's variance independent of the depth (GPT-2, Radford et al.
        2019).
        """
        narrow = INITIAL_STD / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.ones_(parameter)
            else:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=narrow if into_residual else INITIAL_STD)

    def output_weight(self) -> Tensor:
        """W_VxD: a hidden state times its transpose is the logits. The embedding itself when tied."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.weight
        return self.lm_head.weight

    @property
    def is_compiled(self) -> bool:
        """Whether `compile_blocks` was called."""
        return self._run_block is not _run_block

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Fuses the small operations of a layer in training; one compilation serves all layers.

        Only for shapes that stay the same: evaluation and decoding, whose shapes vary, are not compiled.
        """
        self._run_block = torch.compile(_run_block, dynamic=False, backend=backend)

    def hidden_states(
        self,
        ids_BxT: Tensor,
        positions_BxT: Tensor | None = None,
        document_ids_BxT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The final, normalised hidden state of every token.

        Args:
            positions_BxT: position of each token for RoPE; by default 0, 1, 2, ... behind what the cache
                holds.
            document_ids_BxT: tokens look only at tokens with the same id (several documents packed in one
                row).
            cache: read and extended; the tokens follow those that it holds.

        Returns:
            h_BxTxD.

        Raises:
            ValueError: more tokens than `max_position_embeddings`, or documents together with a cache.
        """
        rope = self._rope(ids_BxT, positions_BxT, cache)
        mask_Bx1xTxS = self._mask(ids_BxT, document_ids_BxT, cache)
        x_BxTxD = self.model.embed_tokens(ids_BxT)
        run_block = self._run_block if self.training and cache is None else _run_block
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            # There is no dropout, so no random state to put back before a layer is computed again.
            run_block = partial(checkpoint, run_block, use_reentrant=False, preserve_rng_state=False)
        for block in self.model.layers:
            x_BxTxD = run_block(block, x_BxTxD, rope, mask_Bx1xTxS, cache)
        if cache is not None:
            cache.advance(ids_BxT.shape[1])
        return self.model.norm(x_BxTxD)

    def forward(
        self,
        ids_BxT: Tensor,
        positions_BxT: Tensor | None = None,
        document_ids_BxT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position, BxTxV in float32; arguments as in `hidden_states`."""
        return self.logits(self.hidden_states(ids_BxT, positions_BxT, document_ids_BxT, cache))

    def logits(self, h_D: Tensor) -> Tensor:
        """Logits of the token behind each final hidden state: ...xD to ...xV in float32."""
        return F.linear(h_D, self.output_weight().to(h_D.dtype)).float()

    def _rope(
        self, ids_BxT: Tensor, positions_BxT: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor]:
        start = cache.length if cache is not None else 0
        end = start + ids_BxT.shape[1]
        limit = self.config.max_position_embeddings
        if end > limit and positions_BxT is None:
            raise ValueError(f"{end} tokens, but the model was built for {limit}; cut the text or split it")
        cos_PxH, sin_PxH = self._tables(ids_BxT.device)
        if positions_BxT is None:
            return cos_PxH[None, start:end, None], sin_PxH[None, start:end, None]
        return cos_PxH[positions_BxT][:, :, None], sin_PxH[positions_BxT][:, :, None]

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # Plain attributes and not buffers: they follow from the config, so they have no place in a
        # checkpoint.
        if self._rope_tables is None or self._rope_tables[0].device != device:
            config = self.config
            with torch.inference_mode(False):  # tables made in inference mode could never be trained with
                self._rope_tables = rope_tables(
                    config.max_position_embeddings, config.head_dim, config.rope_theta, device
                )
        return self._rope_tables

    def _mask(self, ids_BxT: Tensor, document_ids_BxT: Tensor | None, cache: KVCache | None) -> Tensor | None:
        if document_ids_BxT is not None:
            if cache is not None:
                raise ValueError("document_ids and a cache do not go together: decode one document per row")
            return document_mask(document_ids_BxT)
        if cache is None or cache.length == 0 or ids_BxT.shape[1] == 1:
            return None
        return continuation_mask(cache.length, ids_BxT.shape[1], ids_BxT.device)


def _run_block(
    block: Block,
    x_BxTxD: Tensor,
    rope: tuple[Tensor, Tensor],
    mask_Bx1xTxS: Tensor | None,
    cache: KVCache | None,
) -> Tensor:
    """A function and not the module itself, so that torch.compile makes one program for all layers."""
    return block(x_BxTxD, rope, mask_Bx1xTxS, cache)
