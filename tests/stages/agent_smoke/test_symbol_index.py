"""`lookup` finds titles whole, by their end, or says which come close."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_contracts.documents import DOCUMENTS
from data_contracts.tables import write_part
from stages.agent_smoke.symbol_index import SymbolIndex


@pytest.fixture(scope="module")
def index(documents: Path) -> SymbolIndex:
    return SymbolIndex(documents)


def test_an_exact_title_answers_with_signature_and_first_sentence(index: SymbolIndex) -> None:
    assert index.answer("textwrap.dedent") == "dedent(text) — Remove common leading whitespace."


def test_a_unique_end_is_enough(index: SymbolIndex) -> None:
    assert index.answer("dedent") == index.answer("textwrap.dedent")
    assert index.answer("path.join") == index.answer("os.path.join")


def test_an_end_that_several_titles_share_is_not_guessed(index: SymbolIndex) -> None:
    assert index.resolve("join") is None
    assert index.answer("join") == "join not found; did you mean os.path.join or posixpath.join?"


def test_an_end_within_a_name_does_not_count(index: SymbolIndex) -> None:
    assert index.resolve("dent") is None


@pytest.mark.parametrize("symbol", ["textwrap.dedant", "textwrap.dedents", "dedant"])
def test_a_typing_error_is_answered_with_the_close_title(index: SymbolIndex, symbol: str) -> None:
    assert index.answer(symbol) == f"{symbol} not found; did you mean textwrap.dedent?"


def test_nothing_close_is_said_plainly(index: SymbolIndex) -> None:
    assert index.answer("xyzzy.qwfp") == "xyzzy.qwfp not found"


def test_of_two_documents_with_one_title_the_first_is_meant(tmp_path: Path) -> None:
    row = {"source": "s", "kind": "text", "language": "en", "split": "train", "num_bytes": 1, "title": "a"}
    rows = [row | {"doc_id": "1", "text": "First."}, row | {"doc_id": "2", "text": "Second."}]
    write_part(tmp_path, DOCUMENTS, [*rows, row | {"doc_id": "3", "title": None, "text": "Untitled."}])
    index = SymbolIndex(tmp_path)
    assert (len(index), index.answer("a")) == (1, "a — First.")


def test_a_folder_without_documents_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no documents: expected part-"):
        SymbolIndex(tmp_path)


def test_texts_are_found_in_every_row_group_and_file(tmp_path: Path) -> None:
    from data_contracts.tables import ROWS_PER_GROUP, PartWriter

    row = {"source": "s", "kind": "text", "language": "en", "split": "train", "num_bytes": 1}
    for number, name in enumerate(["part-00000.parquet", "part-00001.parquet"]):
        with PartWriter(tmp_path, DOCUMENTS, name) as writer:
            ids = [f"t{number}.n{i}" for i in range(ROWS_PER_GROUP + 5)]
            writer.write_all(row | {"doc_id": i, "title": i, "text": f"Text of {i}."} for i in ids)
    index = SymbolIndex(tmp_path)
    for title in ("t0.n3", f"t0.n{ROWS_PER_GROUP + 2}", f"t1.n{ROWS_PER_GROUP + 4}"):
        assert index.answer(title) == f"{title} — Text of {title}."
