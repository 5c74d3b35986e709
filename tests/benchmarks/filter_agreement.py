"""Whether our filters decide as datatrove's do, with datatrove's word splitter, on real documents.

    python tests/benchmarks/filter_agreement.py FOLDER [--documents 20000]

FOLDER holds Parquet files with text: a column `text`, `target`, or `paragraphs` (lists of lines). Files whose name
ends in _zh are Chinese. Takes half of the documents from each language, the smallest files first, and prints for
each filter how many decisions agree, and every document on which they do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.measuring.judging import judge, rule_values
from stages.corpus_prep.measuring.line_edits import edit_c4_lines
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.measuring.rules import reasons_of
from tests.stages.corpus_prep.measuring.datatrove_reference import (
    DatatroveSplitter,
    our_rules,
    reference_decision,
    reference_filters,
)

ROWS = 200
MAX_CHARACTERS = 200_000
"""Of one document; spaCy takes minutes for a whole book."""


def documents(folder: Path, language: str, number: int) -> list[str]:
    """The first so many texts of this language."""
    files = [p for p in folder.glob("*.parquet") if p.stem.endswith("_zh") == (language == "zh")]
    found: list[str] = []
    for path in sorted(files, key=lambda p: (p.stat().st_size, p.name)):
        for text in _texts(path):
            found.append(text[:MAX_CHARACTERS])
            if len(found) == number:
                return found
    return found


def _texts(path: Path) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        column = next(name for name in ("text", "target", "paragraphs") if name in file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield "\n".join(value) if isinstance(value, list) else value or ""


def compare(texts: list[str], language: str) -> dict[str, list[int]]:
    """Filter -> [documents, agreeing decisions, datatrove's reason in our mask, edits equal, kept by datatrove]."""
    splitter = DatatroveSplitter(language)
    totals = {name: [0] * 5 for name in reference_filters(language)}
    for start in range(0, len(texts), ROWS):
        part = pa.array(texts[start : start + ROWS], pa.large_string())
        measures = measure(part, splitter)
        for name, total in totals.items():
            masks = judge(measures, our_rules(name, language))
            edited, _ = edit_c4_lines(part, terminal_punctuation=name == "c4")
            for row, mask in enumerate(masks.tolist()):
                text = texts[start + row]
                reason, left = reference_decision(name, language, text)
                ours = [found.split(".")[1] for found in reasons_of(mask)]
                same = bool(reason) == bool(ours)
                total[0] += 1
                total[1] += same
                total[2] += reason in ours if reason else not ours
                total[3] += bool(reason) or not name.startswith("c4") or edited[row].as_py() == left
                total[4] += not reason
                if not same or (reason and reason not in ours):
                    _explain(name, language, start + row, reason, ours, measures.slice(row, 1), text)
    return totals


def _explain(
    name: str, language: str, number: int, reason: str, ours: list[str], measures: pa.RecordBatch, text: str
) -> None:
    print(
        f"{language} {name} document {number}: datatrove {reason or 'keeps'}, ours {', '.join(ours) or 'keep'}"
    )
    for rule in our_rules(name, language):
        if rule.reason.split(".")[1] in {reason, *ours}:
            print(f"    {rule}; measured {rule_values(measures, rule)[0]!r}")
    print(f"    {text[:100]!r}")


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=20_000)
    arguments = parser.parse_args()
    lines = []
    for language in ("en", "zh"):
        texts = documents(arguments.folder, language, arguments.documents // 2)
        for name, (number, same, reason, edits, kept) in compare(texts, language).items():
            lines.append(
                f"| {language} | {name} | {number:,} | {kept:,} | {number - same} | {same / number:.3%} | {reason / number:.3%} | {edits / number:.3%} |"
            )
    print(
        "\n| language | filter | documents | datatrove keeps | differ | decisions agree | its reason is ours | same text left |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
