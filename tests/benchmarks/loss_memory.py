"""Peak memory of the loss over a large vocabulary: ours in chunks, and the plain one with all logits.

    python tests/benchmarks/loss_memory.py                 8 x 1,024 tokens, vocabulary 65,536; half a minute

Each runs forward and backward in a process of its own, from the same hidden states and the same output
matrix; the peak is the highest resident memory above what those inputs take. The gradients of both are
compared by norm: |ours - plain| / |plain|.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.whitebox.losses import cross_entropy_sum

MIB = 2**20
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Found(NamedTuple):
    """What one process measured."""

    peak_bytes: int
    cpu_seconds: float
    loss: float
    gradients: tuple[Tensor, Tensor]


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """hidden_BxTxD and weight_VxD, which want gradients, and targets_BxT; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.rows, options.context_tokens)
    hidden = torch.randn(*shape, options.width, generator=generator).requires_grad_()
    weight = (
        options.width**-0.5 * torch.randn(options.vocab_size, options.width, generator=generator)
    ).requires_grad_()
    return hidden, weight, torch.randint(0, options.vocab_size, shape, generator=generator)


def loss_of(who: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean loss, either way."""
    if who == "plain":
        return F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    nats, num_targets = cross_entropy_sum(hidden, weight, targets)
    return nats / num_targets


def in_child(who: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Measures one of the two."""
    torch.set_num_threads(options.threads)
    hidden, weight, targets = inputs(options)
    loss_of(
        who, hidden[:1, :8], weight[:16], targets[:1, :8] % 16
    ).backward()  # libraries load what they need
    hidden.grad = weight.grad = None
    before = resident_bytes("VmRSS")
    RESET_PEAK.write_text("5", encoding="ascii")
    started = time.process_time()
    loss = loss_of(who, hidden, weight, targets)
    loss.backward()
    seconds = time.process_time() - started
    peak = resident_bytes("VmHWM") - before
    torch.save([hidden.grad, weight.grad], options.folder / f"{who}.pt")
    pipe.send((peak, seconds, loss.item()))


def resident_bytes(field: str) -> int:
    """A field of /proc/self/status, which Linux gives in kB."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(who: str, options: argparse.Namespace) -> Found:
    """One fresh process."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    child = spawn.Process(target=in_child, args=(who, options, theirs))
    child.start()
    peak, seconds, loss = mine.recv()
    child.join()
    grad_hidden, grad_weight = torch.load(options.folder / f"{who}.pt")
    return Found(peak, seconds, loss, (grad_hidden, grad_weight))


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, by norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def main() -> None:
    import tempfile

    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        ours, plain = measure("ours", options), measure("plain", options)
    print(
        f"{options.rows} x {options.context_tokens} tokens, vocabulary {options.vocab_size:,}, width {options.width}\n"
    )
    print("| loss | peak MiB | CPU s | nats per token |\n|---|---|---|---|")
    for name, found in (("plain, all logits", plain), ("ours, in chunks", ours)):
        print(f"| {name} | {found.peak_bytes / MIB:,.0f} | {found.cpu_seconds:.1f} | {found.loss:.6f} |")
    print(f"\npeak memory of the plain loss over ours: {plain.peak_bytes / ours.peak_bytes:.1f}")
    for name, mine, theirs in zip(
        ("hidden states", "output matrix"), ours.gradients, plain.gradients, strict=True
    ):
        print(f"gradient of the {name}: relative difference {difference(mine, theirs):.1e}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context-tokens", type=int, default=1024)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
