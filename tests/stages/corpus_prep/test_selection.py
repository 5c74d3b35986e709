"""Exact duplicates and the size limit in DuckDB, against a plain loop over the same rows."""

from __future__ import annotations

import random
from pathlib import Path

from stages.corpus_prep.cleaning import Cleaner, RawDocument, content_id, scratch_rows
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.sampling import fair_shares
from stages.corpus_prep.selection import DUPLICATE, KEPT, OVER_LIMIT, select

WORDS = "lamp river stone apple bridge keeper storm bell light boat garden field".split()  # noqa: SIM905


def _scratch(folder: Path, count: int) -> tuple[Path, list[dict[str, object]]]:
    rng = random.Random(9)
    texts: list[str] = []
    funnel = Funnel(folder / "rejects")
    with Cleaner(folder / "scratch.parquet", funnel) as cleaner:
        for _ in range(count):
            fresh = " ".join(rng.choices(WORDS, k=rng.randint(10, 60)))
            text = rng.choice(texts).upper().replace(" ", "  ") if texts and rng.random() < 0.3 else fresh
            texts.append(text)
            cleaner.add(RawDocument(rng.choice(("a", "b", "c", "c", "c")), "", "text", text))
    funnel.close()
    return cleaner.scratch, list(scratch_rows(cleaner.scratch))


def test_select_agrees_with_a_plain_loop(tmp_path: Path) -> None:
    scratch, rows = _scratch(tmp_path, 600)
    limit = 30_000
    seen: set[object] = set()
    expected = {}
    for row in rows:
        expected[row["position"]] = DUPLICATE if row["doc_id"] in seen else KEPT
        seen.add(row["doc_id"])
    first = [row for row in rows if expected[row["position"]] == KEPT]
    sizes = {s: sum(int(str(r["num_bytes"])) for r in first if r["source"] == s) for s in "abc"}
    for source, share in fair_shares(sizes, limit).items():
        used = 0
        for row in sorted((r for r in first if r["source"] == source), key=lambda r: str(r["doc_id"])):
            used += int(str(row["num_bytes"]))
            if used > share:
                expected[row["position"]] = OVER_LIMIT
    found = select(scratch, len(rows), limit, tmp_path)
    assert [found.of(position) for position in range(len(rows))] == list(expected.values())
    assert {DUPLICATE, KEPT, OVER_LIMIT} == set(expected.values())


def test_a_generous_limit_drops_only_duplicates(tmp_path: Path) -> None:
    scratch, rows = _scratch(tmp_path, 50)
    verdicts = select(scratch, len(rows), 10**9, tmp_path).verdicts.tolist()
    assert OVER_LIMIT not in verdicts
    assert verdicts.count(KEPT) == len({row["doc_id"] for row in rows})


def test_the_id_ignores_case_and_white_space_only() -> None:
    assert content_id("The  Lamp\n") == content_id("the lamp")
    assert content_id("the lamp") != content_id("the lamps")
    assert content_id("ÄPFEL") == content_id("äpfel")
