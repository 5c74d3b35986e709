"""The sample keeps its budget, hears every stratum and does not depend on the order of rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contracts import CONVERSATIONS, DOCUMENTS
from data_contracts.tables import write_part
from stages.tokenizer.sample import (
    Draw,
    allocate,
    choose_conversations,
    choose_documents,
    count_splits,
    cut_bytes,
    sampled_documents,
)


def row(number: int, language: str, num_bytes: int, split: str = "train") -> dict[str, Any]:
    fields = {"source": "s", "title": "", "kind": "text", "language": language, "split": split}
    return {"doc_id": f"{language}{number}", "num_bytes": num_bytes, "text": "x" * num_bytes, **fields}


@pytest.mark.parametrize("budget", [10, 999, 10_000, 123_457])
def test_allocate_spends_the_budget_and_favours_small_strata(budget: int) -> None:
    totals = {"en": 100_000, "zh": 20_000, "ar": 500}
    quotas = allocate(totals, budget)
    assert sum(quotas.values()) <= budget
    assert sum(quotas.values()) >= min(budget, sum(totals.values())) - len(totals)
    assert all(quotas[key] <= totals[key] for key in totals)
    share = {key: quotas[key] / totals[key] for key in totals}
    assert share["ar"] >= share["zh"] >= share["en"]


def test_everything_is_taken_when_the_budget_allows() -> None:
    assert allocate({"a": 3, "b": 4}, 7) == {"a": 3, "b": 4}


def test_documents_are_chosen_by_id_within_the_budget(tmp_path: Path) -> None:
    rows = [row(i, "en", 100) for i in range(200)] + [row(i, "zh", 50) for i in range(10)]
    rows += [row(999, "en", 100, split="validation")]
    write_part(tmp_path / "a", DOCUMENTS, rows)
    write_part(tmp_path / "b", DOCUMENTS, rows[::-1])
    chosen = choose_documents(tmp_path / "a", 4000, 20_000)
    assert chosen == choose_documents(tmp_path / "b", 4000, 20_000)
    assert sum(chosen.values()) <= 4000
    assert sum(len(text) for text in sampled_documents(tmp_path / "a", chosen)) == sum(chosen.values())
    assert sum(doc_id.startswith("zh") for doc_id in chosen) == 10
    assert "en999" not in chosen


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 50)), unique_by=lambda item: item[0]),
    st.integers(0, 300),
)
def test_a_draw_is_the_shortest_beginning_that_spends_it(items: list[tuple[int, int]], quota: int) -> None:
    draw, expected, left = Draw(quota), {}, quota
    for number, size in items:
        draw.offer(str(number), size)
    in_order = sorted(items, key=lambda item: hashlib.blake2b(str(item[0]).encode(), digest_size=8).digest())
    for number, size in in_order:
        if left > 0:
            expected[str(number)] = min(size, left)
            left -= size
    assert draw.taken() == expected


def test_a_draw_holds_no_more_than_it_may_need() -> None:
    draw = Draw(1000)
    for number in range(5000):
        draw.offer(str(number), 100)
        assert len(draw._held) <= 10


def test_splits_are_counted_over_all_files(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "validation", "train")):
        folder = tmp_path / str(number)
        write_part(folder, DOCUMENTS, [row(i, "en", 1, split) for i in range(1500 + number)])
        (folder / "part-00000.parquet").rename(tmp_path / f"part-{number:05d}.parquet")
    assert count_splits(tmp_path) == {"train": 1500 + 1502, "validation": 1501}


def test_long_documents_lend_only_their_beginning(tmp_path: Path) -> None:
    write_part(tmp_path, DOCUMENTS, [row(0, "en", 5000), row(1, "en", 300)])
    chosen = choose_documents(tmp_path, 10_000, 1000)
    assert chosen == {"en0": 1000, "en1": 300}


def test_cut_bytes_keeps_whole_characters() -> None:
    assert cut_bytes("灯塔", 5) == "灯"
    assert cut_bytes("lamp", 9) == "lamp"


def test_conversations_come_from_the_training_split(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x" * 90}]
    rows = [
        {"conversation_id": f"c{i}", "source": "s", "kind": "qa", "split": split, "messages": messages}
        for i, split in enumerate(["train"] * 8 + ["validation"] * 2)
    ]
    write_part(tmp_path, CONVERSATIONS, rows)

    def as_text(row: Any) -> str:
        return str(row["messages"][0]["content"])

    assert len(choose_conversations(tmp_path, 300, as_text)) == 4  # the fourth goes over the budget
    assert choose_conversations(tmp_path, 10_000, as_text) == {f"c{i}" for i in range(8)}
    assert choose_conversations(tmp_path, 0, as_text) == frozenset()
