"""Pieces of a file give together exactly the rows of the whole, whatever their size."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.corpus_prep.reading import plain_text
from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.pieces import Piece, pieces
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile, kind_of
from stages.runtime.errors import RetryableError

FOLDER_IS_REUSED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _file(path: Path) -> SourceFile:
    return SourceFile(path.name, path, kind_of(path), origin=path.name)


def _rows(cut: list[Piece]) -> list[ReadRow]:
    return [row for piece in cut for row in read_piece(piece, ReadNotes())]


texts = st.text(st.sampled_from("ab茶é 𝄞\u2028\r"), max_size=12)


@FOLDER_IS_REUSED
@given(
    rows=st.lists(texts, max_size=30),
    max_bytes=st.integers(1, 400),
    ending=st.sampled_from(["\n", "\r\n", "\n\n"]),
    last=st.booleans(),
)
def test_json_lines(tmp_path: Path, rows: list[str], max_bytes: int, ending: str, last: bool) -> None:
    path = tmp_path / "a.jsonl"
    body = ending.join(json.dumps({"text": text}, ensure_ascii=False) for text in rows)
    data = (body + (ending if last else "")).encode()
    path.write_bytes(data)
    read = _rows(pieces(_file(path), max_bytes))
    assert [row.fields["text"] for row in read] == rows
    # The place leads back to the row.
    assert [json.loads(data[row.begin : row.end])["text"] for row in read] == rows


@FOLDER_IS_REUSED
@given(
    cells=st.lists(st.text("ab茶 ", min_size=1, max_size=9), max_size=30),
    max_bytes=st.integers(1, 300),
    quoted=st.booleans(),
)
def test_csv(tmp_path: Path, cells: list[str], max_bytes: int, quoted: bool) -> None:
    if quoted:
        cells = [f"{cell}\n{cell}" for cell in cells]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["title", "text"])
    writer.writerows([[str(n), cell] for n, cell in enumerate(cells)])
    path = tmp_path / "a.csv"
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    cut = pieces(_file(path), max_bytes)
    read = _rows(cut)
    assert [row.fields for row in read] == [{"title": str(n), "text": cell} for n, cell in enumerate(cells)]
    data = path.read_bytes()
    assert [next(csv.reader(io.StringIO(data[row.begin : row.end].decode())))[1] for row in read] == cells
    if quoted and cells:
        assert len(cut) == 1


@FOLDER_IS_REUSED
@given(
    parts=st.lists(st.text("ab茶\n ", min_size=1, max_size=60), min_size=1, max_size=60),
    cells=st.integers(1, 5),
)
def test_running_text_is_cut_at_the_same_places_in_one_go_and_in_pieces(
    tmp_path: Path, parts: list[str], cells: int
) -> None:
    path = tmp_path / "a.txt"
    data = "\n\n".join(parts).encode()
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "CELL_BYTES", 64)
        patch.setattr("stages.corpus_prep.reading.pieces.CELL_BYTES", 64)
        whole = _rows([Piece(_file(path))])
        assert _rows(pieces(_file(path), 64 * cells)) == whole
    for row in whole:
        assert data[row.begin : row.end].decode() == row.fields["text"]
    between = [b"", *(data[a.end : b.begin] for a, b in pairwise(whole))]
    assert not b"".join(between).strip()
    assert "".join(row.fields["text"] for row in whole).split() == data.decode().split()


@FOLDER_IS_REUSED
@given(
    num_rows=st.integers(1, 60),
    group=st.integers(1, 20),
    max_bytes=st.integers(1, 2000),
)
def test_parquet(tmp_path: Path, num_rows: int, group: int, max_bytes: int) -> None:
    path = tmp_path / "a.parquet"
    rows: list[dict[str, Any]] = [{"text": f"row {n}", "about": {"n": n}} for n in range(num_rows)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    read = _rows(pieces(_file(path), max_bytes))
    assert [row.fields for row in read] == rows
    assert [row.number for row in read] == list(range(num_rows))


def test_a_line_that_is_longer_than_several_pieces_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = json.dumps({"text": "x" * 5000})
    path.write_text(f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n', encoding="utf-8")
    cut = pieces(_file(path), 100)
    assert [len(row.fields["text"]) for row in _rows(cut)] == [1, 5000, 1]
    assert all(a.end == b.begin for a, b in pairwise(cut))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json", "a.html"])
def test_what_cannot_be_cut_is_one_piece(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"text": "a"}\n' * 100)
    assert len(pieces(_file(path), 50)) == 1


def test_a_file_that_changed_since_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 50, encoding="utf-8")
    cut = pieces(_file(path), 100)
    path.write_text('{"text": "b"}\n' * 51, encoding="utf-8")
    with pytest.raises(RetryableError, match="changed while it was read"):
        _rows(cut[-1:])
