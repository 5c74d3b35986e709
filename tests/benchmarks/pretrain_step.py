"""One training step: tokens per second, memory and MFU of ours, transformers, nanoGPT and litgpt.

    python tests/benchmarks/pretrain_step.py                     about ten minutes
    python tests/benchmarks/pretrain_step.py --sizes 10M --contexts 256 --rounds 2

Everyone trains the same shape on the same tokens with fused AdamW, clipping at 1 and the mean loss read
after every step, each in a process of its own (`step_contenders.py` holds their loops). The processes take
turns step by step, so that other load on the machine meets all of them; of each the best step counts.

Times: by the clock, and as CPU seconds of the process. On a shared machine trust the second. Memory: the
highest resident memory of the steps after the first two, less what was resident when the libraries were
imported. MFU: the operations of PaLM's appendix B per CPU second against the best matrix product here.

Bfloat16 is measured where the CPU multiplies it, or with `--dtypes bfloat16`. `--who` chooses, by name: "nanoGPT,
compiled" and "litgpt, compiled" are there too.

transformers' Trainer wants `pip install accelerate`, litgpt `pip install litgpt`; who is not installed is left
out, saying so.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import step_contenders as contenders
import torch
from step_contenders import VOCAB_SIZE, Task

from stages.whitebox.device import pick_device

SIZES = {"10M": (320, 6, 5, 1024), "25M": (512, 7, 8, 1408)}
"""width, layers, heads, feed-forward: 9.7M and 24.6M parameters with the tied embedding."""
WARM_STEPS = 2
OURS, OURS_COMPILED, OURS_CHECKPOINTED = "ours", "ours, compiled", "ours, compiled, checkpointed"
PEERS = ("nanoGPT", "transformers Trainer", "litgpt")
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20

Contender = Callable[[Task, contenders.Gate], None]


@dataclass(frozen=True)
class Result:
    """The best step of one contender; seconds, and bytes above the imported libraries."""

    wall_seconds: float = float("inf")
    cpu_seconds: float = float("inf")
    peak_bytes: int = 0
    first_seconds: float = 0.0


class ProcessGate:
    """Waits in a child process for the parent, and tells it what each step took."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.steps, self.base_bytes = pipe, 0, 0
        self.started = (0.0, 0.0)

    def is_ready(self) -> None:
        self.base_bytes = resident_bytes("VmRSS")
        self._wait()

    def step_is_done(self) -> None:
        wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        self.steps += 1
        peak = resident_bytes("VmHWM") - self.base_bytes
        if self.steps <= WARM_STEPS:
            RESET_PEAK.write_text("5", encoding="ascii")
        self.pipe.send((wall, cpu, peak))
        self._wait()

    def _wait(self) -> None:
        if not self.pipe.recv():
            raise SystemExit
        self.started = (time.perf_counter(), time.process_time())


def resident_bytes(field: str) -> int:
    """A field of /proc/self/status, which Linux gives in kB."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_child(contender: Contender, task: Task, pipe: Connection) -> None:
    """The whole life of a child process."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    contender(task, ProcessGate(pipe))


def measure(chosen: dict[str, Contender], task: Task, rounds: int) -> dict[str, Result]:
    """Everyone's best of `rounds` steps, taken in turns."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    children = []
    for name, contender in chosen.items():
        pipes[name], theirs = spawn.Pipe()
        children.append(spawn.Process(target=in_child, args=(contender, task, theirs)))
        children[-1].start()
        theirs.close()
    results = {name: Result() for name in chosen}
    for turn in range(WARM_STEPS + rounds):
        for name, pipe in pipes.items():
            results[name] = take_step(pipe, results[name], turn)
    for pipe in pipes.values():
        pipe.send(False)
    for child in children:
        child.join()
    return results


def take_step(pipe: Connection, best: Result, turn: int) -> Result:
    """One step of one contender; warm-up steps leave only the time of the first."""
    pipe.send(True)
    wall, cpu, peak = pipe.recv()
    if turn < WARM_STEPS:
        return replace(best, first_seconds=wall if turn == 0 else best.first_seconds)
    return replace(
        best,
        wall_seconds=min(best.wall_seconds, wall),
        cpu_seconds=min(best.cpu_seconds, cpu),
        peak_bytes=max(best.peak_bytes, peak),
    )


def best_product(dtype: torch.dtype, threads: int) -> float:
    """Operations per CPU second of the best of several matrix products; a CPU has no other peak to look up."""
    torch.set_num_threads(threads)
    best = 0.0
    for rows, inner, columns in ((2048, 1024, 1024), (2048, 512, 1408), (2048, 2048, 2048)):
        left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
        for _ in range(6):
            started = time.process_time()
            torch.nn.functional.linear(left, right)
            best = max(best, 2 * rows * inner * columns / (time.process_time() - started))
    return best


def flops_per_token(task: Task) -> int:
    """Six per matrix parameter, and 12 x layers x width x context (PaLM, arXiv:2204.02311, appendix B)."""
    layer = 4 * task.width**2 + 3 * task.width * task.feed_forward
    matrices = task.layers * layer + VOCAB_SIZE * task.width
    return 6 * matrices + 12 * task.layers * task.width * task.context_tokens


def choose(options: argparse.Namespace) -> dict[str, Contender]:
    """Who is installed and asked for."""
    found: dict[str, Contender] = {"nanoGPT": contenders.train_nanogpt}
    for name, packages, contender in (
        ("transformers Trainer", ("transformers", "accelerate"), contenders.train_transformers),
        ("litgpt", ("litgpt", "lightning"), contenders.train_litgpt),
    ):
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"left out: {name}, because {', '.join(missing)} is not installed")
        else:
            found[name] = contender
    for name in {"nanoGPT", "litgpt"} & found.keys():
        found[f"{name}, compiled"] = partial(found[name], compiled=True)
    found[OURS] = contenders.train_ours
    found[OURS_COMPILED] = partial(contenders.train_ours, compiled=True)
    found[OURS_CHECKPOINTED] = partial(contenders.train_ours, compiled=True, checkpointed=True)
    found["ours, compiled, Muon"] = partial(contenders.train_ours, compiled=True, muon=True)
    return {name: contender for name, contender in found.items() if name in options.who}


def row(size: str, task: Task, name: str, results: dict[str, Result], peak: float) -> str:
    """A line of the Markdown table."""
    result, tokens = results[name], task.rows * task.context_tokens
    peers = [r for other, r in results.items() if not other.startswith(OURS)]
    fastest, leanest = min(r.cpu_seconds for r in peers), min(r.peak_bytes for r in peers)
    by_clock = min(r.wall_seconds for r in peers) / result.wall_seconds
    mfu = flops_per_token(task) * tokens / result.cpu_seconds / peak
    return (
        f"| {size}, {task.context_tokens} | {task.dtype} | {name} | {tokens / result.wall_seconds:,.0f} "
        f"| {tokens / result.cpu_seconds:,.0f} | {fastest / result.cpu_seconds:.2f} | {by_clock:.2f} | {mfu:.0%} "
        f"| {result.peak_bytes / MIB:,.0f} | {result.peak_bytes / leanest:.2f} | {result.first_seconds:.0f} s |"
    )


def main() -> None:
    options = parse_arguments()
    print(f"chosen here: {pick_device().reason}; {options.threads} threads")
    chosen = choose(options)
    peaks = {name: best_product(getattr(torch, name), options.threads) for name in ("float32", "bfloat16")}
    for name, peak in peaks.items():
        print(f"best matrix product in {name}: {peak / 1e9:.0f} GFLOP per CPU second")
    print(
        "\n| size, context | type | who | tokens/s | tokens per CPU s | times the fastest peer, CPU s "
        "| by the clock | MFU | peak MiB | times the leanest peer | first step |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        for context in options.contexts:
            for dtype in options.dtypes:
                task = Task(
                    *SIZES[size], context, options.step_tokens // context, dtype, threads=options.threads
                )
                results = measure(chosen, task, options.rounds)
                for name in results:
                    print(row(size, task, name, results, peaks[dtype]), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    multiplied = ["float32", "bfloat16"] if pick_device().compute_dtype == torch.bfloat16 else ["float32"]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--contexts", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=multiplied)
    parser.add_argument("--step-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1, help="1 measures best on a shared machine")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--who",
        nargs="+",
        default=[*PEERS, OURS, OURS_COMPILED],
        help='by name in the table; also "nanoGPT, compiled", "litgpt, compiled", "ours, compiled, Muon" and '
        '"ours, compiled, checkpointed"; at least one peer',
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
