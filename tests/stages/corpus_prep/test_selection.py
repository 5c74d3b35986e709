"""Exact duplicates and the size limit in DuckDB, against a plain loop over the same rows."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.corpus_prep.cleaning import Cleaner, RawDocument, content_id, stream
from stages.corpus_prep.duplicates.dedup_index import write_index
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.quality_filters import judge
from stages.corpus_prep.sampling import fair_shares, split_of
from stages.corpus_prep.selection import (
    DUPLICATE,
    KEPT,
    LOW_QUALITY,
    NEAR_DUPLICATE,
    OVER_LIMIT,
    SPLIT_NAMES,
    Choice,
    Shards,
    select,
)

WORDS = "lamp river stone apple bridge keeper storm bell light boat garden field".split()  # noqa: SIM905


Row = dict[str, object]


def _shards(folder: Path, count: int, number: int = 3) -> tuple[Shards, list[Row]]:
    """Tables of shards, and all of their rows in order."""
    rng = random.Random(9)
    texts: list[str] = []
    paths, rows = [], []
    for shard in range(number):
        funnel = Funnel(folder / f"rejects-{shard}")
        path, measures = folder / f"{shard}.parquet", folder / f"{shard}-measures.parquet"
        with Cleaner(path, measures, funnel) as cleaner:
            for _ in range(count // number):
                fresh = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
                text = rng.choice(texts).upper().replace(" ", "  ") if texts and rng.random() < 0.3 else fresh
                texts.append(text)
                cleaner.add(RawDocument("", "text", text), rng.choice(("a", "b", "c", "c", "c")))
        funnel.close()
        paths.append((path, measures))
        rows += [row for batch in stream(path) for row in batch.to_pylist()]
    counts = [pq.read_metadata(path).num_rows for path, _ in paths]
    return Shards([path for path, _ in paths], [measures for _, measures in paths], counts), rows


def _expected(rows: list[Row], limit: int) -> list[int]:
    """By plain loops: good ones, of equal ones the first by source and place, of each source its share."""
    order: list[object] = list(dict.fromkeys(row["source"] for row in rows))
    found = [KEPT if judge(str(row["text"]), "en")[0] else LOW_QUALITY for row in rows]
    seen: set[object] = set()
    for position in sorted(range(len(rows)), key=lambda p: (order.index(rows[p]["source"]), p)):
        if found[position] == KEPT:
            found[position] = DUPLICATE if rows[position]["doc_id"] in seen else KEPT
            seen.add(rows[position]["doc_id"])
    size = [int(str(row["num_bytes"])) for row in rows]
    members = {s: [p for p, r in enumerate(rows) if r["source"] == s and found[p] == KEPT] for s in order}
    shares = fair_shares({str(s): sum(size[p] for p in members[s]) for s in sorted(map(str, order))}, limit)
    for source, share in shares.items():
        used = 0
        for position in sorted(members[source], key=lambda p: str(rows[p]["doc_id"])):
            used += size[position]
            if used > share:
                found[position] = OVER_LIMIT
    return found


def test_select_agrees_with_a_plain_loop(tmp_path: Path) -> None:
    shards, rows = _shards(tmp_path, 600)
    found = select(shards, Choice(30_000), tmp_path / "work")
    expected = _expected(rows, 30_000)
    assert found.verdicts.tolist() == expected
    assert {DUPLICATE, KEPT, OVER_LIMIT, LOW_QUALITY} == set(expected)
    kept = [position for position, verdict in enumerate(expected) if verdict == KEPT]
    splits = [split_of(str(rows[position]["doc_id"]), 0.05) for position in kept]
    assert [SPLIT_NAMES[found.splits[position]] for position in kept] == splits


def test_a_generous_limit_drops_only_duplicates(tmp_path: Path) -> None:
    shards, rows = _shards(tmp_path, 60)
    found = select(shards, Choice(10**9), tmp_path / "work")
    good = {row["doc_id"] for row in rows if judge(str(row["text"]), "en")[0]}
    assert found.verdicts.tolist().count(KEPT) == len(good)
    duplicates = [(p, k) for p, k in enumerate(found.keepers) if found.verdicts[p] == DUPLICATE]
    assert duplicates and all(rows[p]["doc_id"] == keeper for p, keeper in duplicates)


@pytest.mark.parametrize("fraction", [0.000001, 0.499999])
def test_neither_split_is_empty(tmp_path: Path, fraction: float) -> None:
    shards, _ = _shards(tmp_path, 9)
    found = select(shards, Choice(10**9, fraction), tmp_path / "work")
    assert set(found.splits[found.verdicts == KEPT].tolist()) == {0, 1}


def test_decisions_are_written_by_shard(tmp_path: Path) -> None:
    shards, rows = _shards(tmp_path, 60)
    found = select(shards, Choice(2_000), tmp_path / "work")
    tables = [pq.read_table(path) for path in found.write(tmp_path / "decisions", shards.counts)]
    assert [table.num_rows for table in tables] == list(shards.counts)
    assert [v for table in tables for v in table["verdict"].to_pylist()] == found.verdicts.tolist()
    assert len(rows) == sum(table.num_rows for table in tables)


def _two_corpora(folder: Path, texts: list[list[str]]) -> list[Shards]:
    found = []
    for number, corpus in enumerate(texts):
        path, measures = folder / f"{number}.parquet", folder / f"{number}-measures.parquet"
        with Cleaner(path, measures, Funnel(folder / f"rejects-{number}")) as cleaner:
            for text in corpus:
                cleaner.add(RawDocument("", "text", text), f"source-{number}")
        found.append(Shards([path], [measures], [len(corpus)]))
    return found


def test_near_duplicates_go_and_share_a_split(tmp_path: Path) -> None:
    rng = random.Random(3)
    lasting = [" ".join(rng.choices(WORDS, k=80)) for _ in range(40)]
    changed = [text.replace("lamp", "torch", 1) for text in lasting]
    (shards,) = _two_corpora(tmp_path, [lasting + changed])
    loose = select(shards, Choice(10**9, 0.4), tmp_path / "work")
    assert loose.verdicts.tolist().count(NEAR_DUPLICATE) == 0
    strict = select(shards, Choice(10**9, 0.4, similarity=0.5), tmp_path / "work")
    gone = [p for p in range(80) if strict.verdicts[p] in (NEAR_DUPLICATE, DUPLICATE)]
    assert len(gone) >= 38 and {p % 40 for p in gone} == set(range(40)) - {
        p for p in range(40) if strict.verdicts[p] == strict.verdicts[p + 40] == KEPT
    }
    for place in range(40):
        assert strict.split_keys[place] == strict.split_keys[place + 40] or place not in {
            p % 40 for p in gone
        }


def test_what_an_earlier_corpus_holds_is_dropped(tmp_path: Path) -> None:
    rng = random.Random(4)
    old = [" ".join(rng.choices(WORDS, k=60)) for _ in range(20)]
    new = [" ".join(rng.choices(WORDS, k=60)) for _ in range(20)]
    first, second = _two_corpora(tmp_path, [old, [*new, *old[:5], old[6].replace("lamp", "torch", 1)]])
    measures = pq.read_table(first.measures[0], columns=["doc_id", "source", "text_hash", "signature"])
    write_index(tmp_path / "index", [measures.append_column("split_key", measures["doc_id"])])
    choice = Choice(10**9, similarity=0.5, earlier=[tmp_path / "index"])
    found = select(second, choice, tmp_path / "work")
    assert found.verdicts[:20].tolist() == [KEPT] * 20
    assert found.verdicts[20:25].tolist() == [DUPLICATE] * 5
    assert found.verdicts[25] in (NEAR_DUPLICATE, DUPLICATE)
    assert all("of an earlier corpus" in keeper for keeper in found.keepers[20:])


def test_the_id_ignores_case_and_white_space_only() -> None:
    assert content_id("The  Lamp\n") == content_id("the lamp")
    assert content_id("the lamp") != content_id("the lamps")
    assert content_id("ÄPFEL") == content_id("äpfel")
