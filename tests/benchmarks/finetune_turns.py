"""Contenders of fine-tuning in processes of their own that take turns, and the table of what they needed.

A turn is one pass over all examples, so everyone has done the same work when it ends. Other load on the machine
meets all of them; the median of the turns counts. Memory is the highest resident memory of the turns after the
first (VmHWM), less what was resident when the libraries were imported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from finetune_contenders import Gate, Task
from pretrain_step import MIB, RESET_PEAK, SIZES, resident_bytes

from stages.tokenizer.bundle import write_bundle
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.checkpoint import save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.device import pick_device
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

VOCAB_SIZE = 3500
Contender = Callable[[Task, Gate], None]
Examples = list[dict[str, list[int]]]


class PipeGate:
    """Waits in a child process for the parent, and tells it what each round took."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.base_bytes, self.started = pipe, 0, (0.0, 0.0)

    def is_ready(self) -> None:
        self.base_bytes = resident_bytes("VmRSS")

    def tell(self, values: Mapping[str, float]) -> None:
        self.pipe.send(dict(values))
        self._wait()

    def round_is_done(self, passes: float = 1.0) -> None:
        wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        self.pipe.send((wall / passes, cpu / passes, resident_bytes("VmHWM") - self.base_bytes))
        self._wait()

    def _wait(self) -> None:
        if not self.pipe.recv():
            raise SystemExit
        RESET_PEAK.write_text("5", encoding="ascii")
        self.started = (time.perf_counter(), time.process_time())


@dataclass
class Result:
    """Of one contender: seconds of one pass, a value per round, and what it told before."""

    told: dict[str, float]
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def in_child(contender: Contender, task: Task, pipe: Connection) -> None:
    """The whole life of a child process."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    contender(task, PipeGate(pipe))


def take_turns(chosen: Mapping[str, Contender], task: Task, rounds: int) -> dict[str, Result]:
    """Everyone's `rounds` rounds; one before them only warms up."""
    spawn = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    for name, contender in chosen.items():
        pipes[name], theirs = spawn.Pipe()
        children.append(spawn.Process(target=in_child, args=(contender, task, theirs), daemon=True))
        children[-1].start()
        theirs.close()
    results = {name: Result(pipe.recv()) for name, pipe in pipes.items()}
    for turn in range(1 + rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            wall, cpu, peak = pipe.recv()
            if turn:
                results[name].wall_seconds.append(wall)
                results[name].cpu_seconds.append(cpu)
                results[name].peak_bytes = max(results[name].peak_bytes, peak)
    for pipe in pipes.values():
        pipe.send(False)
    for child in children:
        child.join()
    return results


def make_folder(
    folder: Path, size: str, context_tokens: int, texts: Sequence[str], examples_of: Callable[..., Examples]
) -> Examples:
    """A tokenizer learned from `texts`, an untrained Llama of `size`, and the examples as ids."""
    (folder / "tokenizer").mkdir()
    tokenizer = Tokenizer(train_sentencepiece(texts, VOCAB_SIZE))
    write_bundle(tokenizer, folder / "tokenizer")
    width, layers, heads, feed_forward = SIZES[size]
    torch.manual_seed(0)
    config = ModelConfig(
        VOCAB_SIZE,
        width,
        feed_forward,
        layers,
        heads,
        heads,
        width // heads,
        max_position_embeddings=context_tokens,
        qk_norm=False,
    )
    save_model(CausalLM(config), folder / "model")
    examples = examples_of(tokenizer)
    (folder / "examples.json").write_text(json.dumps(examples), encoding="utf-8")
    return examples


def compare(
    options: argparse.Namespace,
    chosen: Mapping[str, Contender],
    texts: Sequence[str],
    examples_of: Callable[[Tokenizer], Examples],
    text_tokens: Callable[[Mapping[str, list[int]]], int],
) -> None:
    """Prints a table for all sizes; the first contender is what the others are compared with.

    Args:
        text_tokens: of an example, padding not counted, the same for everyone.
    """
    print(
        "| size, context, type | who | tokens/s | ratio | tokens per CPU s | ratio | peak MiB | ratio | before training |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            examples = make_folder(folder, size, options.context_tokens, texts, examples_of)
            task = Task(folder, options.context_tokens, options.rows, options.threads, options.dtype)
            results = take_turns(chosen, task, options.rounds)
        tokens = sum(map(text_tokens, examples))
        for name, result in results.items():
            print(
                row(f"{size}, {options.context_tokens}, {options.dtype}", name, result, results, tokens),
                flush=True,
            )


def row(size: str, name: str, result: Result, results: Mapping[str, Result], tokens: int) -> str:
    """A line of the Markdown table; ratios are to the first contender."""
    first = next(iter(results.values()))
    wall, cpu = median(result.wall_seconds), median(result.cpu_seconds)
    told = ", ".join(f"{value:.5f}" for value in result.told.values())
    return (
        f"| {size} | {name} | {tokens / wall:,.0f} | {median(first.wall_seconds) / wall:.2f} "
        f"| {tokens / cpu:,.0f} | {median(first.cpu_seconds) / cpu:.2f} "
        f"| {result.peak_bytes / MIB:,.0f} | {result.peak_bytes / first.peak_bytes:.2f} | {told} |"
    )


def add_options(parser: argparse.ArgumentParser, rows: int, examples: int) -> None:
    """What both scripts can be told."""
    parser.add_argument("data", nargs="?", type=Path, help="Parquet file; a generated set without it")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--context-tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=rows, help="packed rows, or pairs, of one update")
    parser.add_argument("--examples", type=int, default=examples)
    chosen = str(pick_device().compute_dtype).removeprefix("torch.")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=chosen, help="of the products")
    parser.add_argument("--threads", type=int, default=1, help="1 measures best on a shared machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--who", nargs="+", help="contenders by name; all without it")


def pick(contenders: dict[str, Contender], names: Sequence[str] | None) -> dict[str, Contender]:
    """Those that were asked for, in their order."""
    return {name: contenders[name] for name in contenders if names is None or name in names}


def evenly(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` of them, at even distances."""
    return [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]


def generated_words(generator: Any, low: int, high: int) -> str:
    """A made-up sentence of `low` to `high` words, from syllables, so that a tokenizer has what to learn."""
    syllables = ("la", "mi", "ter", "on", "ka", "sel", "du", "vi", "ro", "nen", "pa", "sto")
    words = (
        "".join(generator.choice(syllables, size=generator.integers(1, 5)))
        for _ in range(generator.integers(low, high))
    )
    return " ".join(words) + "."
