"""Exact duplicates and the size limit in DuckDB, against a plain loop over the same rows."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.corpus_prep.cleaning import Cleaner, RawDocument, content_id, stream
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.sampling import fair_shares, split_of
from stages.corpus_prep.selection import DUPLICATE, KEPT, LOW_QUALITY, OVER_LIMIT, SPLIT_NAMES, select

WORDS = "lamp river stone apple bridge keeper storm bell light boat garden field".split()  # noqa: SIM905


Row = dict[str, object]


def _shards(folder: Path, count: int, number: int = 3) -> tuple[list[Path], list[Row]]:
    """Tables of shards, and all of their rows in order."""
    rng = random.Random(9)
    texts: list[str] = []
    paths, rows = [], []
    for shard in range(number):
        funnel = Funnel(folder / f"rejects-{shard}")
        path = folder / f"{shard}.parquet"
        with Cleaner(folder / f"{shard}-texts.parquet", path, funnel) as cleaner:
            for _ in range(count // number):
                fresh = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
                text = rng.choice(texts).upper().replace(" ", "  ") if texts and rng.random() < 0.3 else fresh
                texts.append(text)
                cleaner.add(RawDocument(rng.choice(("a", "b", "c", "c", "c")), "", "text", text))
        funnel.close()
        paths.append(path)
        rows += [row for batch in stream(path) for row in batch.to_pylist()]
    return paths, rows


def _counts(paths: list[Path]) -> list[int]:
    return [pq.read_metadata(path).num_rows for path in paths]


def test_select_agrees_with_a_plain_loop(tmp_path: Path) -> None:
    paths, rows = _shards(tmp_path, 600)
    limit = 30_000
    seen: set[object] = set()
    expected = {}
    for position, row in enumerate(rows):
        expected[position] = LOW_QUALITY if row["reason"] else DUPLICATE if row["doc_id"] in seen else KEPT
        if not row["reason"]:
            seen.add(row["doc_id"])
    first = [(p, row) for p, row in enumerate(rows) if expected[p] == KEPT]
    sizes = {s: sum(int(str(r["num_bytes"])) for _, r in first if r["source"] == s) for s in "abc"}
    for source, share in fair_shares(sizes, limit).items():
        used = 0
        theirs = [(p, r) for p, r in first if r["source"] == source]
        for position, row in sorted(theirs, key=lambda item: str(item[1]["doc_id"])):
            used += int(str(row["num_bytes"]))
            if used > share:
                expected[position] = OVER_LIMIT
    found = select(paths, _counts(paths), limit, tmp_path)
    assert found.verdicts.tolist() == list(expected.values())
    assert {DUPLICATE, KEPT, OVER_LIMIT, LOW_QUALITY} == set(expected.values())
    kept = [position for position, verdict in expected.items() if verdict == KEPT]
    splits = [split_of(str(rows[position]["doc_id"]), 0.05) for position in kept]
    assert [SPLIT_NAMES[found.splits[position]] for position in kept] == splits


def test_a_generous_limit_drops_only_duplicates(tmp_path: Path) -> None:
    paths, rows = _shards(tmp_path, 60)
    verdicts = select(paths, _counts(paths), 10**9, tmp_path).verdicts.tolist()
    assert OVER_LIMIT not in verdicts
    assert verdicts.count(KEPT) == len({row["doc_id"] for row in rows if not row["reason"]})


@pytest.mark.parametrize("fraction", [0.000001, 0.499999])
def test_neither_split_is_empty(tmp_path: Path, fraction: float) -> None:
    paths, _ = _shards(tmp_path, 9)
    found = select(paths, _counts(paths), 10**9, tmp_path, fraction)
    assert set(found.splits[found.verdicts == KEPT].tolist()) == {0, 1}


def test_decisions_are_written_by_shard(tmp_path: Path) -> None:
    paths, rows = _shards(tmp_path, 60)
    found = select(paths, _counts(paths), 2_000, tmp_path)
    tables = [pq.read_table(path) for path in found.write(tmp_path / "decisions")]
    assert [table.num_rows for table in tables] == _counts(paths)
    assert [v for table in tables for v in table["verdict"].to_pylist()] == found.verdicts.tolist()
    assert len(rows) == sum(table.num_rows for table in tables)


def test_the_id_ignores_case_and_white_space_only() -> None:
    assert content_id("The  Lamp\n") == content_id("the lamp")
    assert content_id("the lamp") != content_id("the lamps")
    assert content_id("ÄPFEL") == content_id("äpfel")
