"""Muon against AdamW: the same data, the same tokens, several seeds, each at its own best learning rate.

    python tests/benchmarks/muon_against_adamw.py [--tokens DIR --tokenizer DIR] [--train-tokens 400000]

Each optimizer first searches a grid of peaks with seed 0; where the best is at an end, the grid grows there, so
that no search is cut off. Then both run with all seeds. Printed: bits per byte of held-out text with intervals
over seeds (Student's t), and of the difference, seed by seed, because a seed gives both the same order of
documents and the same first weights. AdamW has one peak for all; beside Muon, the embeddings keep the stage's
own. Muon's steps cost more, so CPU seconds stand beside.
Results are kept in a JSON file: a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import statistics

from scipy import stats
from stage_runs import Runs, describe, inputs_of, parser_of

GRIDS = {"muon": [0.01, 0.02, 0.04], "adamw": [1.5e-3, 3e-3, 6e-3]}
SETTING = {"muon": "matrix_learning_rate", "adamw": "learning_rate"}
MAX_GROWTH = 3


def best_rate(runs: Runs, optimizer: str, options: argparse.Namespace) -> float:
    """The peak with the lowest bits per byte, with a worse one on either side."""
    grid = list(GRIDS[optimizer])
    for _ in range(MAX_GROWTH + 1):
        scores = {rate: score(runs, optimizer, rate, 0, options)["validation_bits_per_byte"] for rate in grid}
        best = min(scores, key=lambda rate: scores[rate])
        print(
            f"{optimizer}: " + ", ".join(f"{rate:g} -> {scores[rate]:.4f}" for rate in sorted(grid)),
            flush=True,
        )
        if min(grid) < best < max(grid):
            break
        grid.append(best / 2 if best == min(grid) else best * 2)
    else:
        print(f"{optimizer}: the best is still at the end of the grid")
    return best


def score(
    runs: Runs, optimizer: str, rate: float, seed: int, options: argparse.Namespace
) -> dict[str, float]:
    """The metrics of one run."""
    return runs.of(
        depth=options.depth,
        train_tokens=options.train_tokens,
        global_batch_tokens=options.batch_tokens,
        optimizer=optimizer,
        seed=seed,
        num_threads=options.threads,
        **{SETTING[optimizer]: rate},
    )


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def main() -> None:
    options = parse_arguments()
    tokens, tokenizer = inputs_of(options.tokens, options.tokenizer, options.store)
    runs = Runs(tokens, tokenizer, options.results)
    print(f"{describe(tokens)}\n")
    rates = {name: best_rate(runs, name, options) for name in GRIDS}
    found = {
        name: [score(runs, name, rate, seed, options) for seed in range(options.seeds)]
        for name, rate in rates.items()
    }
    params = found["muon"][0]["num_params"]
    print(
        f"\n{params / 1e6:.1f}M parameters, {options.train_tokens:,} tokens in updates of {options.batch_tokens:,}, "
        f"{options.seeds} seeds\n"
    )
    print("| optimizer | best peak | bits per byte, each seed | mean (95 % interval) | CPU seconds a run |")
    print("|---|---|---|---|---|")
    scores = {name: [each["validation_bits_per_byte"] for each in found[name]] for name in found}
    for name, values in scores.items():
        mean, low, high = interval(values)
        seconds = statistics.fmean(each["cpu_seconds"] for each in found[name])
        each_seed = ", ".join(f"{value:.3f}" for value in values)
        print(
            f"| {name} | {rates[name]:g} | {each_seed} | {mean:.3f} ({low:.3f} to {high:.3f}) | {seconds:.0f} |"
        )
    mean, low, high = interval([a - m for a, m in zip(scores["adamw"], scores["muon"], strict=True)])
    verdict = "Muon is below" if low > 0 else "AdamW is below" if high < 0 else "no difference is shown"
    print(
        f"\nAdamW minus Muon, seed by seed: {mean:+.3f} ({low:+.3f} to {high:+.3f}) bits per byte: {verdict}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "muon_against_adamw.json")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--train-tokens", type=int, default=400_000)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of one update, the same for both")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
