"""What becomes of every file below a folder: kind, documents, characters, language, or why it was refused.

    python tests/benchmarks/odd_documents.py FOLDER [--show CHARACTERS]

Prints a Markdown table, one row per file, and what is neither read nor refused, which must be nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from stages.corpus_prep.languages import detect_language
from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.pieces import Piece
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.record_forms import Document, recognise
from stages.corpus_prep.reading.sources import SourceFile, survey


def read(file: SourceFile) -> tuple[list[str], ReadNotes, float]:
    """Texts of the documents (other rows as JSON), what was noted, CPU seconds."""
    notes = ReadNotes(on_damage="skip")
    start = time.process_time()
    texts = []
    for row in read_piece(Piece(file), notes):
        form = recognise(row.fields)
        record = form.convert(row.fields) if form is not None else None
        is_document = isinstance(record, Document)
        texts.append(record.text if is_document else json.dumps(row.fields, ensure_ascii=False, default=str))  # type: ignore[union-attr]
    return texts, notes, time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--show", type=int, default=0, help="characters of each text to print below the table"
    )
    chosen = parser.parse_args()
    listing = survey("sources", [str(chosen.folder)])
    print("| file | kind | rows | characters | language | CPU s | noted |\n|---|---|---|---|---|---|---|")
    shown, known = [], {reject.path for reject in listing.refused}
    for file in listing.files:
        texts, notes, seconds = read(file)
        known.add(file.name)
        text = "\n".join(texts)
        noted = "; ".join(f"{r.reason}: {r.detail}" for r in notes.rejects[:3]) or ", ".join(notes.encodings)
        language = detect_language(text[:20_000]) if text else ""
        print(
            f"| {file.name} | {file.kind} | {len(texts)} | {len(text):,} | {language} | {seconds:.2f} | {noted} |"
        )
        assert text or notes.rejects, f"{file.name} was lost"
        shown.append((file.name, text))
    for reject in listing.refused:
        print(f"| {reject.path} | | | | | | {reject.reason}: {reject.detail} |")
    below = (Path(folder, name) for folder, _, names in os.walk(chosen.folder) for name in names)
    lost = {path.relative_to(chosen.folder).as_posix() for path in below} - known
    print(
        f"\n{len(listing.files)} files read or reported, {len(listing.refused)} refused by name, lost: {lost or 'none'}"
    )
    for name, text in shown if chosen.show else ():
        print(f"\n=== {name}\n{text[: chosen.show]}")


if __name__ == "__main__":
    main()
