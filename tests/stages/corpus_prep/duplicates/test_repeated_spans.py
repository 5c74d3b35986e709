"""Repeated lines, paragraphs and runs of words: against dictionaries and plain searches."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.corpus_prep.duplicates import partitioned_files
from stages.corpus_prep.duplicates.partitioned_files import PartitionedFiles, create_hash_files
from stages.corpus_prep.duplicates.repeat_counts import read_shared, share_repeated
from stages.corpus_prep.duplicates.repeated_runs import RepeatedRuns, winnowed
from stages.corpus_prep.duplicates.repeated_spans import (
    RepeatedHashes,
    RepeatedSpans,
    Spans,
    Unit,
    cut_spans,
    split_spans,
)

Note = Callable[[int, pa.Array, np.ndarray, PartitionedFiles], None]


def _array(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def _noted(folder: Path, shards: list[list[str]], note: Note) -> list[PartitionedFiles]:
    """What `note` writes of each shard."""
    files = [create_hash_files(folder / str(number)) for number in range(len(shards))]
    for number, (texts, documents) in enumerate(_numbered(shards)):
        note(number, texts, documents, files[number])
        files[number].flush()
    return files


def _numbered(shards: list[list[str]]) -> list[tuple[pa.Array, np.ndarray]]:
    starts = _starts(shards)
    return [(_array(texts), np.arange(starts[n], starts[n + 1])) for n, texts in enumerate(shards)]


def _starts(shards: list[list[str]]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum([len(texts) for texts in shards])))


def _counted(
    folder: Path, files: list[PartitionedFiles], limit: int, starts: np.ndarray
) -> list[RepeatedHashes]:
    """What each shard is told, counted by two workers."""
    folders = [folder / name for name in ("low", "high")]
    for place, partitions in zip(folders, (range(100), range(100, 256)), strict=True):
        place.mkdir(parents=True)
        share_repeated(files, starts, np.arange(starts[-1]), partitions, limit, place)
    return [read_shared(folders, shard, len(files)) for shard in range(len(files))]


def _pieces(text: str, unit: str, min_characters: int) -> list[str]:
    pieces = re.split(r"\n\s*\n" if unit == "paragraph" else r"\n", text)
    pieces = [" ".join(re.split("[\t-\r ]+", piece.strip("\t\n\v\f\r "))) for piece in pieces]
    return [p for p in pieces if p and len(re.sub(" ", "", p)) >= min_characters]


def _made(seed: int) -> list[str]:
    """Texts of few different lines, so that many are repeated; odd white space between them."""
    rng = random.Random(seed)
    lines = ["Sign in  here", " Sign in here", "Sign\tin here\r", "版权所有", "éclair\u00a0x", "a", "", " "]
    lines += [f"line {number} of the text" for number in range(12)]
    breaks = ["\n", "\n\n", "\n \n", "\n\n\n"]
    return [
        "".join(rng.choice(lines) + rng.choice(breaks) for _ in range(rng.randint(0, 8))) for _ in range(40)
    ]


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize("minimum", [0, 4])
def test_spans_are_those_of_a_regular_expression(unit: str, minimum: int) -> None:
    texts = _made(1)
    text, begin, end, hashes = split_spans(_array(["skipped", *texts])[1:], unit, minimum)
    found = defaultdict(list)
    hash_of: dict[str, int] = {}
    for t, b, e, value in zip(text, begin, end, hashes.tolist(), strict=True):
        (piece,) = _pieces(texts[t].encode()[b:e].decode(), unit, minimum)
        found[int(t)].append(piece)
        assert hash_of.setdefault(piece, value) == value
    assert [found[number] for number in range(len(texts))] == [_pieces(t, unit, minimum) for t in texts]
    assert len(set(hash_of.values())) == len(hash_of) > 5


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize(("limit", "max_records"), [(1, 10**6), (5, 10**6), (1, 1)])
def test_the_first_occurrence_stays_and_the_others_go(
    unit: Unit, limit: int, max_records: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioned_files, "MAX_RECORDS", max_records)  # 1: every partition in ranges
    texts = _made(2)
    shards = [texts[:13], [], texts[13:14], texts[14:]]
    spans = RepeatedSpans(unit, 3)
    files = _noted(tmp_path / "noted", shards, lambda _, *batch: spans.note(*batch))
    repeated = _counted(tmp_path / "counted", files, limit, _starts(shards))
    cut = [
        text
        for (batch, documents), found in zip(_numbered(shards), repeated, strict=True)
        for text in cut_spans(batch, spans.find(batch, documents, found)).to_pylist()
    ]
    holders: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        for piece in dict.fromkeys(_pieces(text, unit, 3)):
            holders.setdefault(piece, []).append(number)
    expected = [
        [p for p in _pieces(text, unit, 0) if len(holders.get(p, [])) <= limit or holders[p][0] == number]
        for number, text in enumerate(texts)
    ]
    assert [_pieces(text, unit, 0) for text in cut] == expected
    assert sum(map(len, cut)) < sum(map(len, texts))


def test_cutting_keeps_the_indentation_of_what_follows() -> None:
    text = "def f():\n    say('hello to all')\n      return 1\nend"
    _, begin, end, _ = split_spans(_array([text]), "line", 1)
    left = cut_spans(_array([text]), Spans(np.zeros(1, np.int64), begin[1:2], end[1:2]))
    assert left.to_pylist() == ["def f():\n      return 1\nend"]


def test_a_shard_is_told_of_its_own_hashes_only(tmp_path: Path) -> None:
    shards = [["in all", "here twice", "here twice"], ["in all"], ["in all", "alone"]]
    spans = RepeatedSpans("line", 1)
    files = _noted(tmp_path / "noted", shards, lambda _, *batch: spans.note(*batch))
    told = _counted(tmp_path / "counted", files, 1, _starts(shards))
    hashes = [split_spans(_array(texts), "line", 1)[3].tolist() for texts in shards]
    assert [sorted(found.hashes.tolist()) for found in told] == [sorted(set(hashes[0])), hashes[1], hashes[1]]
    for found in told:
        assert found.first[found.hashes == hashes[1][0]].tolist() == [0]


def test_winnowing_chooses_the_smallest_of_every_window() -> None:
    rng = np.random.default_rng(0)
    for size, window in ((0, 3), (2, 3), (50, 1), (200, 4), (200, 26)):
        hashes = rng.integers(0, 20, size).astype(np.uint64)
        expected = set()
        for begin in range(size - window + 1):
            part = hashes[begin : begin + window]
            expected.add(begin + window - 1 - int(np.argmin(part[::-1])))
        assert winnowed(hashes, window).tolist() == sorted(expected)


def _runs_in(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


@pytest.mark.parametrize("size", [3, 8, 13])
def test_repeated_runs_are_those_of_a_plain_search(size: int, split_plainly, tmp_path: Path) -> None:
    rng = random.Random(size)
    vocabulary = [f"w{i}" for i in range(4000)]
    shared = [rng.choices(vocabulary, k=rng.randint(2, 30)) for _ in range(12)]
    texts = []
    for _ in range(60):
        parts = [rng.choices(vocabulary, k=rng.randint(0, 20)) for _ in range(3)]
        parts.insert(1, rng.choice(shared))
        texts.append(
            ", ".join(word.upper() if rng.random() < 0.1 else word for part in parts for word in part)
        )
    runs = RepeatedRuns(size)
    shards = [texts[:25], texts[25:]]
    files = _noted(tmp_path / "marks", shards, lambda _, *batch: runs.note(*batch))
    marks = _counted(tmp_path / "counted", files, 1, _starts(shards))
    files = _noted(
        tmp_path / "runs", shards, lambda n, a, documents, f: runs.note_runs(a, documents, marks[n], f)
    )
    repeated = _counted(tmp_path / "counted_runs", files, 1, _starts(shards))
    cut = [
        text
        for (batch, documents), found in zip(_numbered(shards), repeated, strict=True)
        for text in cut_spans(batch, runs.find(batch, documents, found)).to_pylist()
    ]
    words = [split_plainly(text) for text in texts]
    first: dict[tuple[str, ...], int] = {}
    for number, own in enumerate(words):
        for run in _runs_in(own, size):
            first.setdefault(run, number)
    expected = []
    for number, own in enumerate(words):
        gone = {
            place
            for start, run in enumerate(_runs_in(own, size))
            if first[run] != number
            for place in range(start, start + size)
        }
        expected.append([word for place, word in enumerate(own) if place not in gone])
    assert [split_plainly(text) for text in cut] == expected
    assert sum(map(len, expected)) < 0.95 * sum(map(len, words))
