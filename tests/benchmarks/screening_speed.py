"""Megabytes per CPU second of each step of the screening, over batches of Arrow strings.

PYTHONPATH=. .venv/bin/python tests/benchmarks/screening_speed.py FILE.parquet ... (column `text`)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.screening.identify_languages import identify_languages
from stages.corpus_prep.screening.perplexity import train_character_model
from stages.corpus_prep.screening.personal_data import mask_personal_data
from stages.corpus_prep.screening.phrase_lists import phrase_list
from stages.corpus_prep.screening.quality_classifier import train_classifier
from stages.corpus_prep.screening.repair_batches import repair_batch
from stages.corpus_prep.text_repair import repair_text

TEXTS_PER_BATCH = 256
PHRASES = 2000


def _batches(path: Path) -> list[pa.LargeStringArray]:
    with pq.ParquetFile(path) as file:
        read = file.iter_batches(batch_size=TEXTS_PER_BATCH, columns=["text"])
        return [batch["text"].cast(pa.large_string()).drop_null() for batch in read]


def _speed(work: Callable[[pa.LargeStringArray], Any], batches: list[pa.LargeStringArray]) -> str:
    work(batches[0].slice(0, 2))
    size, best = sum(batch.nbytes for batch in batches) / 1e6, 1e9
    for _ in range(3):
        before = time.process_time()
        for batch in batches:
            work(batch)
        after = time.process_time()
        best = min(best, after - before)
    return f"{size / best:,.0f}"


def main(paths: list[Path]) -> None:
    """One row a file; the lists and models are made of the first file's own words."""
    first = _batches(paths[0])
    words = sorted({word for text in first[0].to_pylist() for word in text.split() if len(word) > 5})
    listed = phrase_list([f"{word} zz" for word in words[:PHRASES]])
    characters = train_character_model(first)
    classifier = train_classifier(first, [batch for path in paths[1:] for batch in _batches(path)])
    steps: dict[str, Callable[[pa.LargeStringArray], Any]] = {
        "repair one by one": lambda batch: [repair_text(text) for text in batch.to_pylist()],
        "repair": repair_batch,
        "language": identify_languages,
        "personal data": mask_personal_data,
        f"{PHRASES} phrases": listed.count,
        "classifier": classifier.score,
        "perplexity": characters.perplexity,
    }
    print(f"| file | MB | {' | '.join(steps)} | repair, clean |\n|---|---|{'---|' * (len(steps) + 1)}")
    for path in paths:
        batches = _batches(path)
        size = sum(batch.nbytes for batch in batches) / 1e6
        speeds = [_speed(work, batches) for work in steps.values()]
        clean = _speed(repair_batch, [repair_batch(batch)[0] for batch in batches])
        print(f"| {path.name} | {size:.1f} | {' | '.join(speeds)} | {clean} |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
