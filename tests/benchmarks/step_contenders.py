"""Who is compared in `pretrain_step.py`: each trains the same shape on the same tokens, in its own loop.

A contender imports its libraries, says so (`gate.is_ready`), builds its model, and calls `gate.step_is_done`
after every update until that ends the process. The nanoGPT here was written for this comparison, after the
architecture of GPT-2 (Radford et al. 2019): LayerNorm, learned positions, GELU, one matrix for queries, keys
and values. Its feed-forward is 3/2 as wide as ours, because it has two matrices where ours has three: so the
matrices have as many parameters and the products as many operations.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB_SIZE = 4096
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1.0
ENDLESS = 10**6


@dataclass(frozen=True)
class Task:
    """What to train, and on what."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    context_tokens: int
    rows: int
    dtype: str
    threads: int

    @property
    def is_bfloat16(self) -> bool:
        """Whether the products are in bfloat16; weights, optimizer and loss are in float32 always."""
        return self.dtype == "bfloat16"

    def ids(self) -> Tensor:
        """ids_BxT+1, the same for everyone."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(4, VOCAB_SIZE, (self.rows, self.context_tokens + 1), generator=generator)


class Gate(Protocol):
    """Where a contender waits for its turn."""

    def is_ready(self) -> None:
        """All libraries are imported; from here on memory counts."""
        ...

    def step_is_done(self) -> None:
        """One update is done; returns when the next may begin."""
        ...


def train_ours(
    task: Task, gate: Gate, compiled: bool = False, muon: bool = False, checkpointed: bool = False
) -> None:
    """`stages.whitebox.trainer.train`, with the loss of the pretrain stage."""
    from stages.whitebox.config import ModelConfig
    from stages.whitebox.device import keep_freed_memory, why_not_compile
    from stages.whitebox.losses import cross_entropy_sum
    from stages.whitebox.model import CausalLM
    from stages.whitebox.trainer import StepLoss, TrainerSettings, train

    if compiled and why_not_compile(torch.device("cpu")):
        return
    keep_freed_memory()  # as every stage does
    gate.is_ready()
    model = CausalLM(
        ModelConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=task.width,
            intermediate_size=task.feed_forward,
            num_hidden_layers=task.layers,
            num_attention_heads=task.heads,
            num_key_value_heads=task.heads,
            head_dim=task.width // task.heads,
            max_position_embeddings=task.context_tokens,
            qk_norm=False,
        )
    )
    model.activation_checkpointing = checkpointed
    if compiled:
        model.compile_blocks()

    def loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
        hidden = model.hidden_states(batch["ids"])
        return StepLoss(*cross_entropy_sum(hidden, model.output_weight(), batch["targets"]))

    settings = TrainerSettings(
        total_steps=ENDLESS,
        learning_rate=LEARNING_RATE,
        matrix_learning_rate=0.02 if muon else None,
        weight_decay=WEIGHT_DECAY,
        betas=BETAS,
        grad_clip=CLIP,
        compute_dtype=torch.bfloat16 if task.is_bfloat16 else torch.float32,
        evaluate_every_steps=ENDLESS,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            SameBatch(task.ids()),
            loss,
            settings,
            checkpoint_dir=Path(folder),
            on_step=lambda _step, _values: gate.step_is_done(),
        )


class SameBatch:
    """One batch for ever."""

    def __init__(self, ids: Tensor) -> None:
        self.batch = {"ids": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}

    def next_batch(self) -> dict[str, Tensor]:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def train_transformers(task: Task, gate: Gate) -> None:
    """`transformers.Trainer` with `LlamaForCausalLM`; a callback waits at the gate."""
    import transformers

    class Waits(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.step_is_done()

    gate.is_ready()
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=task.width,
            intermediate_size=task.feed_forward,
            num_hidden_layers=task.layers,
            num_attention_heads=task.heads,
            num_key_value_heads=task.heads,
            max_position_embeddings=task.context_tokens,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    ids = task.ids()[:, :-1]
    rows = [{"input_ids": ids[i % task.rows], "labels": ids[i % task.rows]} for i in range(task.rows * 1000)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=task.rows,
            max_steps=1000,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            use_cpu=True,
            bf16=task.is_bfloat16,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[Waits()]).train()


def train_litgpt(task: Task, gate: Gate, compiled: bool = False) -> None:
    """The loop of `litgpt pretrain`: its model and loss, Lightning's Fabric, AdamW; it compiles the model."""
    import lightning
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    fabric = lightning.Fabric(
        accelerator="cpu", devices=1, precision="bf16-mixed" if task.is_bfloat16 else "32-true"
    )
    gate.is_ready()
    model = GPT(
        Config(
            block_size=task.context_tokens,
            vocab_size=VOCAB_SIZE,
            padded_vocab_size=VOCAB_SIZE,
            n_layer=task.layers,
            n_head=task.heads,
            n_query_groups=task.heads,
            n_embd=task.width,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=task.feed_forward,
        )
    )
    model.transformer.wte.weight = model.lm_head.weight
    model = fabric.setup(torch.compile(model) if compiled else model)
    optimizer = fabric.setup_optimizers(_adamw(model))
    ids, targets = task.ids()[:, :-1].contiguous(), task.ids()[:, 1:].contiguous()
    while True:
        loss = chunked_cross_entropy(model(ids), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        gate.step_is_done()


def train_nanogpt(task: Task, gate: Gate, compiled: bool = False) -> None:
    """Plain PyTorch, as short as it gets: autocast, all logits at once, clip, fused AdamW."""
    gate.is_ready()
    gpt = NanoGPT(task)
    model: Callable[[Tensor], Tensor] = torch.compile(gpt) if compiled else gpt
    optimizer = _adamw(gpt)
    ids, targets = task.ids()[:, :-1].contiguous(), task.ids()[:, 1:].contiguous()
    while True:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.is_bfloat16):
            loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(gpt.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        gate.step_is_done()


class NanoGPT(nn.Module):
    """GPT-2 without biases and dropout."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, task.width)
        self.positions = nn.Embedding(task.context_tokens, task.width)
        self.blocks = nn.Sequential(*(NanoBlock(task) for _ in range(task.layers)))
        self.norm = nn.LayerNorm(task.width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids_BxT: Tensor) -> Tensor:
        x_BxTxD = self.tokens(ids_BxT) + self.positions.weight[: ids_BxT.shape[1]]
        return F.linear(self.norm(self.blocks(x_BxTxD)), self.tokens.weight)


class NanoBlock(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        width, inner, self.heads = task.width, 3 * task.feed_forward // 2, task.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        parts = self.qkv(self.norm_1(x_BxTxD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BxTxD = x_BxTxD + self.out(attended.transpose(1, 2).flatten(2))
        return x_BxTxD + self.down(F.gelu(self.up(self.norm_2(x_BxTxD))))


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
