"""Batches mean what rows mean: the same documents, places and licences, or the same rows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.corpus_prep.reading import batches
from stages.corpus_prep.reading.batches import SCHEMA, read_batches
from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.pieces import Piece, pieces
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.record_forms import Document, recognise
from stages.corpus_prep.reading.rows import ReadRow, licence_of, url_of
from stages.corpus_prep.reading.sources import SourceFile, kind_of


def _file(path: Path) -> SourceFile:
    return SourceFile(path.name, path, kind_of(path), licence="by-default", origin=path.name)


def _meant(file: SourceFile, row: ReadRow) -> Any:
    """The oracle: what the row path makes of a row."""
    form = recognise(row.fields)
    if form is None or form.kind != "document":
        return row
    document = form.convert(row.fields)
    assert isinstance(document, Document)
    licence = licence_of(row.fields, file)
    about = (licence, url_of(row.fields), row.begin, row.end, row.number)
    return (document.text, document.title, document.kind, *about)


def _by_rows(cut: list[Piece]) -> tuple[list[Any], list[Any]]:
    notes = ReadNotes(on_damage="skip")
    return [_meant(piece.file, row) for piece in cut for row in read_piece(piece, notes)], notes.rejects


def _by_batches(cut: list[Piece]) -> tuple[list[Any], list[Any], int]:
    notes = ReadNotes(on_damage="skip")
    found: list[Any] = []
    num_in_batches = 0
    for piece in cut:
        for part in read_batches(piece, notes):
            if isinstance(part, pa.RecordBatch):
                part.validate(full=True)
                assert part.schema == SCHEMA
                num_in_batches += part.num_rows
                found += [tuple(row.values()) for row in part.to_pylist()]
            else:
                found += [_meant(piece.file, row) for row in part]
    return found, notes.rejects, num_in_batches


words = st.text(st.sampled_from('ab茶é"\\ \t\n\u2028\u3000\x00𝄞{}'), max_size=15)
values = st.one_of(words, st.none(), st.integers(-5, 5), st.lists(words, max_size=2), st.booleans())
plain = st.fixed_dictionaries(
    {"text": words},
    optional={
        "title": words,
        "name": words,
        "license": words,
        "meta": st.fixed_dictionaries({"licence": words}, optional={"url": values}),
        "url": values,
        "link": st.sampled_from(["", "https://a.test/b", "2020-01-01", "12:30:00"]),
    },
)
other = st.dictionaries(
    st.sampled_from(
        ["text", "title", "content", "kind", "license", "messages", "question", "answer", "choices"]
    ),
    values,
    max_size=3,
)
lines = st.one_of(
    plain.map(lambda row: json.dumps(row, ensure_ascii=False)),
    plain.map(json.dumps),
    other.map(json.dumps),
    st.sampled_from(
        ["", "  ", "not json", '"a string"', "[1]", '{"text": "a", "text": "b"}', '{"text": "\\ud800"}']
    ),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=st.one_of(st.lists(plain.map(json.dumps), max_size=12), st.lists(lines, max_size=12)))
def test_json_lines_by_batches_and_by_rows(tmp_path: Path, listed: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(listed).encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "JSON_BLOCK_BYTES", 100)
        cut = pieces(_file(path), 300)
        rows, rejects = _by_rows(cut)
        found, also_rejected, _ = _by_batches(cut)
    assert found == rows
    assert also_rejected == rejects


def test_bytes_that_are_no_utf8_go_the_way_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "湖边有一间木头小屋"}\n'.encode("gb18030") + b'{"text": "plain"}\n')
    found, _, num_in_batches = _by_batches([Piece(_file(path))])
    assert [row[0] for row in found] == ["湖边有一间木头小屋", "plain"]
    assert num_in_batches == 0


@pytest.mark.parametrize("odd", [b'{"text": "b", "\x80": 1}', b'{"text": "b", "meta": {"\x80": 1}}'])
def test_names_of_fields_that_are_no_utf8_go_the_way_of_rows(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + odd + b"\n")
    cut = pieces(_file(path), 1 << 20)
    documents, rejects, _ = _by_batches(cut)
    assert (documents, rejects) == _by_rows(cut) and len(documents) == 2


def test_plain_documents_do_come_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": n, "text": f"Text {n}", "title": f"T{n}", "date": "2020-01-01"} for n in range(3000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert _by_batches(pieces(_file(path), 20_000))[2] == 3000
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    assert _by_batches(pieces(_file(tmp_path / "a.parquet"), 20_000))[2] == 3000


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "a", "title": " x\u3000y "}, {"text": None, "title": None}],
        [{"text": "a", "license": ""}, {"text": "b", "license": "MIT"}],
        [{"text": "a", "metadata": {"license": "MIT", "n": 1}}, {"text": "b", "metadata": None}],
        [{"text": ["a", "b"], "title": "list"}],
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
        [{"text": "a", "kind": "module"}, {"text": "b", "kind": "other"}],
        [{"number": 1, "nested": [{"x": [1, None]}]}],
        [{"text": "a", "license": ["MIT", "BSD"]}],
        [{"text": "a", "url": "http://a.test"}, {"text": "b", "url": ""}, {"text": "c", "url": None}],
        [{"text": "a", "url": 7, "metadata": {"url": "http://a.test", "source_url": "b"}}],
        [{"text": "a", "url": b"http://a.test", "link": datetime.date(2020, 1, 1)}],
    ],
)
def test_parquet_with_null_and_nested_fields(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    cut = [Piece(_file(path))]
    assert _by_batches(cut)[0] == _by_rows(cut)[0]
    assert len(_by_rows(cut)[0]) == len(rows)


def test_dictionary_columns_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), path)
    found, _, num_in_batches = _by_batches([Piece(_file(path))])
    assert [row[0] for row in found] == ["a", "b", "a"]
    assert num_in_batches == 3
