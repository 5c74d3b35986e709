"""Look into a model that is there: its layers, where its heads look in a text, and the loss around it.

    python -m stages.pretrain.look --model DIR --tokens DIR --events FILE [--prompt TEXT] [--points 15]

`glassworks look` starts this and draws the page. The model is any folder that `load_model` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.pretrain.inside import draw_attention, draw_layers, layer_values
from stages.pretrain.spec import PretrainConfig
from stages.runtime.errors import GlassworksError, UserError
from stages.runtime.events import EventLog
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.checkpoint import load_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.evaluation import evaluate_bits_per_byte
from stages.whitebox.landscape import filter_normalised_direction, loss_surface
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

SCORED_DOCUMENTS = 4
SEEDS = (0, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the events; returns the exit code."""
    options = _parse(arguments)
    try:
        _look(options)
    except GlassworksError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return UserError.exit_code
    return 0


def _look(options: argparse.Namespace) -> None:
    fix_threads(options.threads)
    device = pick_device().device
    model, tokenizer = load_model(options.model, device, torch.float32), Tokenizer.from_folder(options.model)
    validation = TokenShards(options.tokens, "validation")
    if validation.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the model knows {model.config.vocab_size} tokens, the shards in {options.tokens} are of "
            f"{validation.vocab_size}; give the tokens that the model was trained on"
        )
    session = StageSession("look", options.events.parent, EventLog(options.events, as_json=False))
    context = min(256, model.config.context_limit)
    values = layer_values(model, validation, context)
    draw_layers({name: [[0, value]] for name, value in values.items()}, session)
    draw_attention(model, tokenizer, options.prompt, session)
    if options.points > 1:
        draw_landscape(model, validation, context, options.points, options.extent, session)


def draw_landscape(
    model: CausalLM,
    validation: TokenShards,
    context_tokens: int,
    num_points: int,
    extent: float,
    session: StageSession,
) -> None:
    """The held-out loss in a plane of two random directions, and along each of the two."""
    steps = [float(step) for step in np.linspace(-extent, extent, num_points)]
    directions = [filter_normalised_direction(model, seed) for seed in SEEDS]
    points = [(x, y) for y in steps for x in steps]

    def loss() -> float:
        scored = evaluate_bits_per_byte(
            model, validation, max_documents=SCORED_DOCUMENTS, context_tokens=context_tokens
        )
        return scored.loss

    values = []
    for value in loss_surface(model, directions, points, loss):
        values.append(round(value, 4))
        session.progress(len(values), len(points), "points", loss=value)
    rows = [values[start : start + num_points] for start in range(0, len(values), num_points)]
    names = [f"{step:+.1f}" for step in steps]
    session.heatmap(
        "landscape",
        title="The loss around the model",
        x_label="share of the first random direction",
        y_label="share of the second",
        x_names=names,
        y_names=names,
        panels={"nats per token; 1 moves every row of every matrix by its own length": rows},
    )
    middle = num_points // 2
    session.chart(
        "landscape_slices",
        title="The same along each direction",
        x_label="share of the direction",
        y_label="nats per token",
        series={
            "first direction": [list(pair) for pair in zip(steps, rows[middle], strict=True)],
            "second direction": [
                list(pair) for pair in zip(steps, [row[middle] for row in rows], strict=True)
            ],
        },
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True, help="token shards with a validation split")
    parser.add_argument("--events", type=Path, required=True, help="where to write what was measured")
    parser.add_argument("--prompt", default=PretrainConfig.model_fields["attention_prompt"].default)
    parser.add_argument("--points", type=_odd, default=15, help="of each side of the landscape; 1 for none")
    parser.add_argument("--extent", type=float, default=1.0, help="how far to go, in lengths of the weights")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args(arguments)


def _odd(text: str) -> int:
    number = int(text)
    if number < 1 or number % 2 == 0:
        raise argparse.ArgumentTypeError(f"{number}: give an odd number, so that the model is in the middle")
    return number


if __name__ == "__main__":
    sys.exit(main())
