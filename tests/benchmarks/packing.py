"""Packing documents into rows: padding, documents cut that would fit, tokens lost, documents per CPU second.

    python tests/benchmarks/packing.py [--tokens FOLDER] [--documents 200000 1000000 10000000]

Best-fit decreasing (ours), the same written plainly with a sorted list of rooms, cutting rows from all
documents end to end, and best-fit with cropping as nanochat does it: a buffer of documents, the longest that
fits goes into the row, and if none does one is cropped to the rest. With `--tokens` (the part `tokens` of a
tokenizer artifact) its lengths are packed, too; the others are lognormal, as on the web. Prints Markdown.
"""

from __future__ import annotations

import argparse
import bisect
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.tokenizer.packing_report import training_lengths
from stages.whitebox.best_fit import cut_by_concatenation, pack_documents

CONTEXTS = (512, 2048)
MEDIANS = (250, 800)
PLAIN_UP_TO = 200_000  # documents; the plain loops take minutes for more
BUFFER = 1000
Outcome = tuple[float, float, float]
"""Shares of padding, of fitting documents that are cut, of tokens that are lost."""


def ours(lengths: np.ndarray, context_tokens: int) -> Outcome:
    """Counted from the pieces, not taken from what the packing says of itself."""
    packed = pack_documents(lengths, context_tokens)
    held = np.bincount(packed.document_P, weights=packed.length_P, minlength=len(lengths))
    pieces = np.bincount(packed.document_P, minlength=len(lengths))
    fits = lengths <= context_tokens
    used = packed.length_P + (packed.start_P > 0)
    per_row = np.add.reduceat(used, packed.row_starts_R1[:-1])
    assert per_row.max() <= context_tokens
    lost = np.abs(lengths - held).sum() / lengths.sum()
    return 1 - per_row.sum() / (packed.num_rows * context_tokens), (pieces[fits] > 1).mean(), lost


def plain(lengths: np.ndarray, context_tokens: int) -> Outcome:
    """Best-fit decreasing by bisecting a sorted list of the rows' rooms."""
    pieces = []
    for length in lengths.tolist():
        left = length
        while left > context_tokens:
            pieces.append(context_tokens)
            left -= context_tokens - 1
        pieces.append(left)
    rooms: list[int] = []
    num_rows = 0
    for piece in sorted(pieces, reverse=True):
        at = bisect.bisect_left(rooms, piece)
        if at < len(rooms):
            room = rooms.pop(at)
        else:
            room, num_rows = context_tokens, num_rows + 1
        if room > piece:
            bisect.insort(rooms, room - piece)
    return 1 - sum(pieces) / (num_rows * context_tokens), 0.0, 0.0


def concatenate(lengths: np.ndarray, context_tokens: int) -> Outcome:
    """Rows cut from all documents end to end; what fills no row is lost."""
    lost = lengths.sum() % context_tokens / lengths.sum()
    return 0.0, cut_by_concatenation(lengths, context_tokens), lost


def crop(lengths: np.ndarray, context_tokens: int) -> Outcome:
    """Best-fit with cropping, from a buffer of 1,000 documents."""
    waiting, rest = sorted(lengths[:BUFFER].tolist()), iter(lengths[BUFFER:].tolist())
    cut = lost = fitting = total = 0
    while len(waiting) == BUFFER:
        room = context_tokens
        while room:
            at = bisect.bisect_right(waiting, room) - 1
            length = waiting.pop(max(at, 0))
            taken = min(length, room)
            total, lost, room = total + length, lost + length - taken, room - taken
            fitting += length <= context_tokens
            cut += taken < length <= context_tokens
            if (following := next(rest, None)) is not None:
                bisect.insort(waiting, following)
            if not waiting:
                break
    return 0.0, cut / max(1, fitting), lost / max(1, total)


def web_lengths(num_documents: int, median: int) -> np.ndarray:
    """Lognormal lengths around a median."""
    draw = np.random.default_rng(0).lognormal(np.log(median), 1.1, num_documents)
    return np.clip(draw, 3, 200_000).astype(np.int64)


def compare(name: str, lengths: np.ndarray) -> None:
    """Print a row for each way and row length."""
    ways: dict[str, Callable[[np.ndarray, int], Outcome]] = {"best-fit decreasing, ours": ours}
    if len(lengths) <= PLAIN_UP_TO:
        ways |= {"best-fit decreasing, plain": plain, "best-fit with cropping": crop}
    ways |= {"end to end": concatenate}
    for context_tokens in CONTEXTS:
        for way, pack in ways.items():
            start = time.process_time()
            padding, cut, lost = pack(lengths, context_tokens)
            seconds = time.process_time() - start
            print(
                f"| {name} | {context_tokens:,} | {way} | {padding:.4%} | {cut:.1%} | {lost:.3%} | "
                f"{len(lengths) / seconds:,.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--documents", type=int, nargs="+", default=[200_000, 1_000_000, 10_000_000])
    options = parser.parse_args()
    print("| documents | row | packing | padding | fitting documents cut | tokens lost | per CPU second |")
    print("|---|---|---|---|---|---|---|")
    if options.tokens:
        lengths = training_lengths(options.tokens)
        compare(f"{len(lengths):,} of {options.tokens.name}", lengths)
    for count in options.documents:
        for median in MEDIANS:
            compare(f"{count:,}, median {median}", web_lengths(count, median))


if __name__ == "__main__":
    main()
