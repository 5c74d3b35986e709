"""What the report shows of the inside of the model: its layers over the run, and where its heads look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from stages.runtime.session import StageSession
from stages.whitebox.activations import measure_layers
from stages.whitebox.attention_maps import attention_maps, habits
from stages.whitebox.batches import TokenShards
from stages.whitebox.losses import IGNORED
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

PROBED_TOKENS = 512
"""Enough for a norm to two digits; forward and backward together cost what 512 tokens of training cost."""
MAX_LAYERS = 8
"""As many lines as the report has colours."""
MAX_MAPS = 12
MAX_MAP_TOKENS = 24
CLEAR_HABIT = 0.4

History = Mapping[str, Sequence[Sequence[float]]]


def layer_values(model: CausalLM, validation: TokenShards, context_tokens: int) -> dict[str, float]:
    """`grad_norm/2` and the like: each statistic of each layer, on the same held-out tokens every time."""
    tokens = torch.from_numpy(validation.read(0, min(PROBED_TOKENS, validation.num_tokens)))
    rows = max(1, len(tokens) // context_tokens)
    targets_BxT = tokens[: rows * context_tokens].view(rows, -1).to(model.output_weight().device)
    begin_Bx1 = torch.full_like(targets_BxT[:, :1], validation.bos_id)
    ids_BxT = torch.cat([begin_Bx1, targets_BxT[:, :-1]], dim=1)
    measured = measure_layers(
        model, ids_BxT, targets_BxT.masked_fill(targets_BxT == validation.bos_id, IGNORED)
    )
    return {
        f"{name}/{layer}": value
        for layer, statistics in enumerate(measured)
        for name, value in asdict(statistics).items()
    }


def is_of_a_layer(name: str) -> bool:
    """Whether a value is one of `layer_values`, which have charts of their own."""
    return "/" in name


def draw_layers(history: History, session: StageSession) -> None:
    """Gradient norms over the run, and activations along the depth at its end."""
    depth = sum(name.startswith("grad_norm/") for name in history)
    if depth == 0:
        return
    _draw_gradients(history, depth, session)
    names = {"residual_rms": "residual stream", "attention_rms": "attention adds"}
    names["feed_forward_rms"] = "feed-forward adds"
    session.chart(
        "pretrain_layer_activations",
        title="Size of the activations",
        x_label="layer",
        y_label="root mean square",
        series={
            label: [[layer, history[f"{name}/{layer}"][-1][1]] for layer in range(depth)]
            for name, label in names.items()
        },
    )
    columns = ["layer", *names.values(), "largest value", "gradient norm"]
    fields = [*names, "largest", "grad_norm"]
    rows = [
        [layer, *(f"{history[f'{name}/{layer}'][-1][1]:.4g}" for name in fields)] for layer in range(depth)
    ]
    session.table("pretrain_layers", columns, rows, caption="The layers at the end, on held-out text")


def _draw_gradients(history: History, depth: int, session: StageSession) -> None:
    if len(history["grad_norm/0"]) < 2:
        return
    shown = sorted({round(i * (depth - 1) / (MAX_LAYERS - 1)) for i in range(MAX_LAYERS)})
    session.chart(
        "pretrain_layer_gradients",
        title="Gradient norm of each layer",
        x_label="step",
        y_label="norm, on held-out text",
        series={f"layer {layer}": history[f"grad_norm/{layer}"] for layer in shown},
    )


def draw_attention(model: CausalLM, tokenizer: Tokenizer, prompt: str, session: StageSession) -> None:
    """Attention maps of the heads with the clearest habits."""
    room = min(MAX_MAP_TOKENS, model.config.context_limit)
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)][:room]
    maps_LxNxTxT = attention_maps(model, ids)
    found = []
    for layer, maps_NxTxT in enumerate(maps_LxNxTxT):
        for head, map_TxT in enumerate(maps_NxTxT):
            habit, share = max(habits(map_TxT, ids).items(), key=lambda item: item[1])
            told = f"{share:.0%} on {habit}" if share >= CLEAR_HABIT else "no clear habit"
            found.append((share, layer, head, f"layer {layer}, head {head}: {told}"))
    chosen = sorted(sorted(found, reverse=True)[:MAX_MAPS], key=lambda each: each[1:3])
    names = [visible(tokenizer.piece(token)) for token in ids]
    session.heatmap(
        "pretrain_attention",
        title=f"Where each token looks in {prompt!r}",
        x_label="looks at",
        y_label="token",
        x_names=names,
        y_names=names,
        panels={
            told: [[round(float(value), 3) for value in row] for row in maps_LxNxTxT[layer, head]]
            for _, layer, head, told in chosen
        },
    )


def visible(piece: str) -> str:
    """A token as a label: spaces and line ends seen."""
    return piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
