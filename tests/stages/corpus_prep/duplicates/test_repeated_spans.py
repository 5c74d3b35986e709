"""Repeated lines, paragraphs and runs of words: against dictionaries and plain searches."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.corpus_prep.duplicates.repeated_runs import RepeatedRuns, winnowed
from stages.corpus_prep.duplicates.repeated_spans import RepeatedSpans, Spans, cut_spans, split_spans


def _array(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


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
@pytest.mark.parametrize("limit", [1, 5])
def test_the_first_occurrence_stays_and_the_others_go(unit: str, limit: int, tmp_path: Path) -> None:
    texts = _made(2)
    spans = RepeatedSpans(tmp_path / "spans", unit, 3, limit)
    batches = [_array(texts[:13]), _array(texts[13:14]), _array(texts[14:])]
    for batch in batches:
        spans.add(batch)
    spans.count()
    assert not (tmp_path / "spans").exists()
    cut = [text for batch in batches for text in cut_spans(batch, spans.find(batch)).to_pylist()]
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


def test_a_pass_out_of_order_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"count\(\) comes between"):
        RepeatedSpans(tmp_path / "a", "line", 3, 1).find(_array(["x"]))
    with pytest.raises(RuntimeError, match=r"count\(\) comes between"):
        RepeatedRuns(tmp_path / "b", 2).near(_array(["x y z"]))
    with pytest.raises(ValueError, match="at least 2 words"):
        RepeatedRuns(tmp_path / "b", 1)


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
    runs = RepeatedRuns(tmp_path / "runs", size)
    batches = [_array(texts[:25]), _array(texts[25:])]
    for batch in batches:
        runs.add(batch)
    runs.count()
    for batch in batches:
        runs.near(batch)
    runs.count()
    cut = [text for batch in batches for text in cut_spans(batch, runs.find(batch)).to_pylist()]
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
