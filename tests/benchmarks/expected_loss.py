"""What loss should I see? Measured for what fits on this machine, extrapolated by a fitted law and marked so.

    python tests/benchmarks/expected_loss.py [--tokens DIR --tokenizer DIR] [--output FILE.md]

Small runs of the pretrain stage, each with its learning rate decayed to the end, are fitted with L = E + A / N^a
+ B / D^b in bits per byte (`scaling_law.py`); N counts the parameters in the layers, D tokens trained on. The
longest run of each larger depth is held out first, to say how far off the law is there; the table's law is then
fitted to all. Its range is that of the laws of all kinds with one run left out. Results are kept in a JSON file: a script
that was stopped goes on. The text is small and of one kind: on other text the floor E is another one, and far
from what was measured the table is a guess with a formula.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

from model_shapes import shapes
from scaling_law import PUBLISHED_EXPONENTS, PUBLISHED_FLOOR, Law, Point, fit
from stage_runs import Runs, bytes_per_token, describe, inputs_of, parser_of

from stages.pretrain.recipe import CHINCHILLA_TOKENS_PER_PARAM, make_recipe
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.speed import GPU_PEAK_TFLOPS
from stages.whitebox.batches import TokenShards
from stages.whitebox.config import ModelConfig

PLAN = {
    1: (60_000, 600_000, 3_000_000),
    2: (50_000, 200_000, 700_000, 2_000_000),
    3: (100_000, 400_000, 1_200_000),
    4: (100_000, 300_000, 840_000),
}
"""Depth -> tokens; about 15 minutes on two cores. The last of each depth from 2 on is held out."""
SHARES = (0.01, 0.1, 1.0)
OF_THE_TABLE = "published floor"
KINDS: dict[str, tuple[tuple[float, float] | None, float | None]] = {
    OF_THE_TABLE: (None, PUBLISHED_FLOOR),
    "published exponents": (PUBLISHED_EXPONENTS, None),
    "no floor": (None, 0.0),
    "everything free": (None, None),
}
"""Exponents and floor of a law, None for those that are fitted."""
ASSUMED_MFU = {"RTX 3090": 0.35, "H100": 0.40}
MEASURED_WITHIN = 0.1
"""A cell counts as measured where a run of that shape had these tokens, to this share."""
MEMORY_BYTES = 24 * 2**30


class Run(NamedTuple):
    """A run that was measured."""

    depth: int
    shape: ModelConfig
    tokens: float
    bits_per_byte: float
    flops_per_second: float

    @property
    def point(self) -> Point:
        """What the law is fitted to."""
        return Point(params_in_layers(self.shape), self.tokens, self.bits_per_byte)


class Table(NamedTuple):
    """What the table is computed with."""

    law: Law
    without_one: list[Law]
    said: list[str]
    nats_per_bit: float
    """Nats per token are so many times the bits per byte, in this text's vocabulary."""


def params_in_layers(shape: ModelConfig) -> float:
    """Without embeddings, which make a model no wiser, and of experts those that a token sees."""
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    return float(shape.num_active_params() - embeddings)


def measure(runs: Runs, vocab_size: int, threads: int) -> list[Run]:
    """All runs of the plan, the cheapest first."""
    found = []
    planned = sorted(
        (depth**3 * tokens, depth, tokens) for depth, all_of in PLAN.items() for tokens in all_of
    )
    for _, depth, tokens in planned:
        shape = ModelConfig.from_depth(depth, vocab_size, max_position_embeddings=256)
        metrics = runs.of(depth=depth, train_tokens=tokens, num_threads=threads)
        flops = metrics["tokens_per_second"] * shape.flops_per_token(256)
        found.append(Run(depth, shape, metrics["train_tokens"], metrics["validation_bits_per_byte"], flops))
        print(f"depth {depth}, {found[-1].tokens:>9,.0f} tokens: {found[-1].bits_per_byte:.3f}", flush=True)
    return found


def choose_law(found: list[Run], nats_per_bit: float) -> Table:
    """The law of the table, those of every kind with one run left out, and what to say about them."""
    last = {(depth, max(run.tokens for run in found if run.depth == depth)) for depth in PLAN if depth > 1}
    held_out = [run.point for run in found if (run.depth, run.tokens) in last]
    fitted = [run.point for run in found if (run.depth, run.tokens) not in last]
    points = [run.point for run in found]
    said = []
    for name, given in KINDS.items():
        law = fit(fitted, *given)
        said.append(
            f"{name}: {law}; relative error {law.error(fitted):.1%} on {len(fitted)} runs, "
            f"{law.error(held_out):.1%} on the {len(held_out)} held out"
        )
    without_one = [
        fit([*points[:i], *points[i + 1 :]], *given) for given in KINDS.values() for i in range(len(points))
    ]
    law = fit(points, *KINDS[OF_THE_TABLE])
    said.append(f"the table's law, with the {OF_THE_TABLE}, fitted to all {len(points)} runs: {law}")
    return Table(law, without_one, said, nats_per_bit)


def cell(shape: ModelConfig, tokens: float, found: list[Run], table: Table) -> str:
    """Bits per byte and nats per token; measured ones in bold, others with the range of laws that lack a run."""
    for run in found:
        if run.shape == shape and abs(run.tokens / tokens - 1) <= MEASURED_WITHIN:
            return f"**{run.bits_per_byte:.2f}**; {run.bits_per_byte * table.nats_per_bit:.2f}"
    params = params_in_layers(shape)
    expected, values = table.law(params, tokens), [other(params, tokens) for other in table.without_one]
    nats = expected * table.nats_per_bit
    return f"{expected:.2f} ({min(values):.2f} to {max(values):.2f}); {nats:.2f}"


def row(name: str, shape: ModelConfig, found: list[Run], table: Table) -> str:
    """One line of the table."""
    context = shape.max_position_embeddings
    recipe = make_recipe(PretrainConfig(context_tokens=context), shape, MEMORY_BYTES)
    budget = CHINCHILLA_TOKENS_PER_PARAM * shape.num_active_params()
    flops_per_token = shape.flops_per_token(context)
    speeds = [max(run.flops_per_second for run in found)]
    speeds += [GPU_PEAK_TFLOPS[gpu] * 1e12 * mfu for gpu, mfu in ASSUMED_MFU.items()]
    columns = [
        name,
        count(shape.num_params()),
        f"{flops_per_token:.2g}",
        f"{recipe.memory_bytes / 2**30:.2g} GiB",
        count(budget),
        *(cell(shape, share * budget, found, table) for share in SHARES),
        *(duration(budget * flops_per_token / speed) for speed in speeds),
    ]
    return "| " + " | ".join(columns) + " |"


def count(number: float) -> str:
    """`4.2M`."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """`38 min`."""
    for limit, unit in ((365.25 * 86_400, "years"), (4 * 86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= limit:
            number = seconds / (86_400 if unit == "days" else limit)
            return f"{number:,.0f} {unit}" if number >= 9.95 else f"{number:.1f} {unit}"
    return f"{seconds:.2g} s"


def main() -> None:
    options = parse_arguments()
    tokens, tokenizer = inputs_of(options.tokens, options.tokenizer, options.store)
    validation = TokenShards(tokens, "validation")
    runs = Runs(tokens, tokenizer, options.results)
    found = measure(runs, validation.vocab_size, options.threads)
    table = choose_law(found, math.log(2) * bytes_per_token(validation))
    head = "| shape | parameters | FLOPs per token | memory | budget | bits per byte; loss at 1 % | at 10 % "
    head += "| at 100 % | time: here | RTX 3090 | H100 |"
    lines = [f"Text: {describe(tokens)}.", "", *table.said, "", head, "|" + "---|" * 11]
    lines += [row(name, shape, found, table) for name, shape in shapes(validation.vocab_size).items()]
    lines += ["", *notes(found)]
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def notes(found: list[Run]) -> list[str]:
    """How the columns came about."""
    fastest = max(found, key=lambda run: run.flops_per_second)
    gpus = ", ".join(
        f"{gpu} {GPU_PEAK_TFLOPS[gpu]:.0f} TFLOP/s at an assumed MFU of {mfu:.0%} (small shapes reach less)"
        for gpu, mfu in ASSUMED_MFU.items()
    )
    return [
        "**Bold**: measured here. All else: extrapolated by the law, in brackets the range of the laws of all "
        "kinds with one run left out. The loss is in nats per token of this text's vocabulary, whatever the shape's own is.",
        "Budget: 20 tokens per parameter that a token sees. Memory: 16 bytes per parameter (weights, gradients, two moments), float32 "
        "activations of one micro batch, one chunk of logits (`recipe.py`). FLOPs: 6 per matrix parameter and "
        "attention (`flops_per_token`).",
        f"Time: of the whole budget; here at {fastest.flops_per_second / 1e9:,.0f} GFLOP/s, which depth "
        f"{fastest.depth} reached; {gpus}.",
    ]


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "expected_loss.json")
    parser.add_argument("--output", type=Path, help="where to write the table as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
