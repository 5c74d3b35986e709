"""The decoder: token embedding, layers of attention and gated feed-forward, norm, output matrix.

Parameter names are Hugging Face's, so that the weights open elsewhere unchanged.

Shapes: B batch, T tokens, S cached and new tokens, D width, F feed-forward, V vocabulary, H head size, P
positions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.whitebox.attention import Attention, Mask, block_mask, continuation_mask, document_mask
from stages.whitebox.config import ModelConfig
from stages.whitebox.device import can_compile
from stages.whitebox.experts import Experts, MixtureOfExperts, load_balancing_loss
from stages.whitebox.feed_forward import FeedForward
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.norm import RMSNorm
from stages.whitebox.rope import rope_tables
from stages.whitebox.text_pieces import Pieces, pieces_of, take

INITIAL_STD = 0.02
SMALLEST_FLEX_HEAD = 16
"""FlexAttention's kernels take no narrower heads."""


class Block(nn.Module):
    """One layer; both halves read a normalised copy and add to the residual stream (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            MixtureOfExperts(config)
            if config.has_experts(layer)
            else FeedForward(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self,
        x_BxTxD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask | None = None,
        cache: KVCache | None = None,
        wanted_R: Tensor | None = None,
    ) -> Tensor:
        """Returns the residual stream behind this layer, BxTxD, or 1xRxD of the tokens `wanted_R`."""
        attended_BxTxD = self.self_attn(self.input_layernorm(x_BxTxD), rope, mask, cache, wanted_R)
        if wanted_R is not None:
            x_BxTxD = take(x_BxTxD, wanted_R)
        x_BxTxD = x_BxTxD + attended_BxTxD
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
        draws_in_training: whether layers draw random numbers in training, as the dropout of adapters does.
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
        self.draws_in_training = False
        self.init_weights()

    def init_weights(self) -> None:
        """Draws all weights anew.

        | weight                | values                          |
        |-----------------------|---------------------------------|
        | norms                 | 1                               |
        | biases                | 0                               |
        | embeddings, output    | normal, 0.02                    |
        | matrices, experts     | normal, 0.02                    |
        | o_proj, down_proj     | normal, 0.02 / sqrt(2 x layers) |

        The last row keeps the residual stream's variance independent of the depth (GPT-2, Radford et al.
        2019).
        """
        narrow = INITIAL_STD / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim < 2:
                nn.init.ones_(parameter)
            else:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj"))
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
        for module in self.modules():
            if isinstance(module, Experts):
                # The compiler takes the grouped product in bfloat16 only, so experts stay outside.
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
        self._run_block = torch.compile(_run_block, dynamic=False, backend=backend)

    def hidden_states(
        self,
        ids_BxT: Tensor,
        positions_BxT: Tensor | None = None,
        document_ids_BxT: Tensor | None = None,
        cache: KVCache | None = None,
        pieces: Pieces | None = None,
        wanted_R: Tensor | None = None,
    ) -> Tensor:
        """The final, normalised hidden state of every token, or of those that are wanted.

        Args:
            positions_BxT: position of each token for RoPE; by default 0, 1, 2, ... behind what the cache
                holds.
            document_ids_BxT: tokens look only at tokens with the same id (several documents packed in one
                row).
            cache: read and extended; the tokens follow those that it holds.
            pieces: which texts the tokens are, where one goes on from another's beginning; with positions and
                without the two others.
            wanted_R: numbers of tokens, row by row and rising. Where it is possible the last layer computes
                the others' keys and values only: of a prompt nobody reads more.

        Returns:
            h_BxTxD, or h_1xRxD.

        Raises:
            ValueError: more tokens than `config.context_limit`, or documents together with a cache.
        """
        rope = self.rope(ids_BxT, positions_BxT, cache)
        masks = self.masks(ids_BxT, document_ids_BxT, cache, pieces)
        x_BxTxD = self.model.embed_tokens(ids_BxT)
        run_block = self._run_block if self.training and cache is None else _run_block
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            # Without dropout there is no random state to put back before a layer is computed again.
            keeps_state = self.draws_in_training
            run_block = partial(checkpoint, run_block, use_reentrant=False, preserve_rng_state=keeps_state)
        *first, last = zip(self.model.layers, masks, strict=True)
        for block, mask in first:
            x_BxTxD = run_block(block, x_BxTxD, rope, mask, cache)
        block, mask = last
        if wanted_R is not None and isinstance(mask, Pieces) and not self.config.num_experts:
            x_BxTxD = run_block(block, x_BxTxD, rope, mask.asked_by(wanted_R), cache, wanted_R)
        else:  # a router's loss is of all tokens
            x_BxTxD = run_block(block, x_BxTxD, rope, mask, cache)
            x_BxTxD = x_BxTxD if wanted_R is None else take(x_BxTxD, wanted_R)
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

    def router_loss(self) -> Tensor:
        """`load_balancing_loss` of the latest forward pass, with gradient.

        Raises:
            ValueError: no layer has chosen among experts.
        """
        mixtures = (module for module in self.modules() if isinstance(module, MixtureOfExperts))
        return load_balancing_loss(m.routing for m in mixtures if m.routing is not None)

    def rope(
        self, ids_BxT: Tensor, positions_BxT: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos_BxTx1xH and sin_BxTx1xH of the tokens' positions; arguments as in `hidden_states`."""
        start = cache.length if cache is not None else 0
        end = start + ids_BxT.shape[1]
        limit = self.config.context_limit
        if end > limit and positions_BxT is None:
            raise ValueError(f"{end} tokens, but the model was built for {limit}; cut the text or split it")
        if positions_BxT is None:
            cos_PxH, sin_PxH = self._tables(ids_BxT.device, end)
            return cos_PxH[None, start:end, None], sin_PxH[None, start:end, None]
        is_dynamic = limit > self.config.max_position_embeddings
        cos_PxH, sin_PxH = self._tables(ids_BxT.device, int(positions_BxT.max()) + 1 if is_dynamic else 0)
        return cos_PxH[positions_BxT][:, :, None], sin_PxH[positions_BxT][:, :, None]

    def _tables(self, device: torch.device, num_tokens: int) -> tuple[Tensor, Tensor]:
        # Plain attributes and not buffers: they follow from the config, so they have no place in a
        # checkpoint.
        built_for = self.config.max_position_embeddings
        if num_tokens > built_for:  # dynamic RoPE turns slower with every token more
            return self._make_tables(device, num_tokens, num_tokens / built_for)
        if self._rope_tables is None or self._rope_tables[0].device != device:
            self._rope_tables = self._make_tables(device, built_for, 1.0)
        return self._rope_tables

    def _make_tables(self, device: torch.device, num_positions: int, stretch: float) -> tuple[Tensor, Tensor]:
        config = self.config
        with torch.inference_mode(False):  # tables made in inference mode could never be trained with
            return rope_tables(
                num_positions, config.head_dim, config.rope_theta, device, config.rope_scaling, stretch
            )

    def masks(
        self,
        ids_BxT: Tensor,
        document_ids_BxT: Tensor | None = None,
        cache: KVCache | None = None,
        pieces: Pieces | None = None,
    ) -> list[Mask | None]:
        """The mask of each layer, made once for all layers with the same window; None is causal."""
        if document_ids_BxT is not None and cache is not None:
            raise ValueError("document_ids and a cache do not go together: decode one document per row")
        windows = [self.config.window_of(layer) for layer in range(self.config.num_hidden_layers)]
        if pieces is not None:
            return [replace(pieces, window=window) for window in windows]
        made = {
            window: self._mask(ids_BxT, document_ids_BxT, cache, window) for window in dict.fromkeys(windows)
        }
        return [made[window] for window in windows]

    def _mask(
        self, ids_BxT: Tensor, document_ids_BxT: Tensor | None, cache: KVCache | None, window: int | None
    ) -> Mask | None:
        num_tokens, device = ids_BxT.shape[1], ids_BxT.device
        num_cached = cache.length if cache is not None else 0
        # A window that holds the whole text is none; attention itself cuts the cache of a single token.
        window = None if window is None or num_cached + num_tokens <= window else window
        if document_ids_BxT is None and num_cached == 0 and window is None:
            return None
        if num_tokens == 1 and document_ids_BxT is None:
            return None
        can_flex = ids_BxT.is_cuda and self.config.head_dim >= SMALLEST_FLEX_HEAD
        if can_flex and self.training and cache is None and can_compile(device.type):
            return block_mask(document_ids_BxT, num_tokens, device, window)
        if document_ids_BxT is not None:
            # A compiled layer wants the same shapes always, and how many texts a row has changes.
            can_split = ids_BxT.device.type == "cpu" and not (self.is_compiled and self.training)
            pieces = pieces_of(document_ids_BxT, window) if can_split else None
            return document_mask(document_ids_BxT, window) if pieces is None else pieces
        return continuation_mask(num_cached, num_tokens, device, window)


def _run_block(
    block: Block,
    x_BxTxD: Tensor,
    rope: tuple[Tensor, Tensor],
    mask: Mask | None,
    cache: KVCache | None,
    wanted_R: Tensor | None = None,
) -> Tensor:
    """A function and not the module itself, so that torch.compile makes one program for all layers."""
    return block(x_BxTxD, rope, mask, cache, wanted_R)
