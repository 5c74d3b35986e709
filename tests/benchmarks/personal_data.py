"""Masking e-mail and IP addresses: our speed and datatrove's on the same texts, and where the two differ.

PYTHONPATH=. .venv/bin/python tests/benchmarks/personal_data.py FILE.parquet ... (column `text`)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.screening.personal_data import mask_personal_data

EMAIL_AND_IP = ("email", "ip")


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    best, result = 1e9, None
    for _ in range(3):
        before = time.process_time()
        result = work()
        after = time.process_time()
        best = min(best, after - before)
    return best, result


def _texts(path: Path, limit: int = 30_000_000) -> pa.LargeStringArray:
    column = pq.read_table(path, columns=["text"])["text"].cast(pa.large_string())
    texts = [text for text in column.to_pylist() if text]
    kept, size = [], 0
    for text in texts:
        if size > limit:
            break
        kept.append(text)
        size += len(text.encode())
    return pa.array(kept, pa.large_string())


def main(paths: list[Path]) -> None:
    """Print one row a file, then up to five differences of each kind."""
    from datatrove.pipeline.formatters import PIIFormatter

    theirs = PIIFormatter(email_replacement="[EMAIL]", ip_replacement="[IP]")
    mask_personal_data(pa.array(["compile a@b.de"], pa.large_string()))
    print(
        "| file | MB | ours MB/cpu-s (5 kinds) | ours (2 kinds) | datatrove | ratio | same | masked by kind |\n|---|---|---|---|---|---|---|---|"
    )
    differing: list[tuple[str, str]] = []
    for path in paths:
        texts = _texts(path)
        size = sum(len(text.encode()) for text in texts.to_pylist()) / 1e6
        all_kinds, (_, counts) = _seconds(lambda texts=texts: mask_personal_data(texts))
        ours, (masked, _) = _seconds(lambda texts=texts: mask_personal_data(texts, EMAIL_AND_IP))
        plain = texts.to_pylist()
        reference, expected = _seconds(lambda plain=plain: [theirs.format(text) for text in plain])
        pairs = list(zip(masked.to_pylist(), expected, strict=True))
        differing += [pair for pair in pairs if pair[0] != pair[1]]
        same = sum(a == b for a, b in pairs) / max(1, len(pairs))
        totals = {name: sum(counts[name].to_pylist()) for name in counts.schema.names}
        print(
            f"| {path.name} | {size:.1f} | {size / all_kinds:.0f} | {size / ours:.0f} | {size / reference:.1f} | {reference / ours:.0f} | {same:.4f} | {totals} |"
        )
    for ours_text, their_text in differing[:25]:
        at = next(i for i, (a, b) in enumerate(zip(ours_text, their_text, strict=False)) if a != b)
        print(
            f"\nours      {ours_text[max(0, at - 50) : at + 40]!r}\ndatatrove {their_text[max(0, at - 50) : at + 40]!r}"
        )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
