"""Rows come out of every kind of file, compressed or not, in any usual encoding; broken files say so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus_prep.reading import json_files, lines, parquet_files, plain_text
from stages.corpus_prep.reading.readers import ReadNotes, read_rows
from stages.corpus_prep.reading.sources import expand
from stages.runtime.errors import UserError

ROWS = [{"title": "Äpfel", "text": "Äpfel reifen.\nIm Herbst."}, {"title": "茶", "text": "泡茶要慢。"}]


def _read(path: Path) -> tuple[list[dict[str, object]], ReadNotes]:
    notes = ReadNotes()
    (file,) = expand("sources", [str(path)])
    return list(read_rows(file, notes)), notes


def _bytes(kind: str) -> bytes:
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if kind == ".json":
        return json.dumps({"version": 1, "data": ROWS}).encode()
    sign = "\t" if kind == ".tsv" else ","
    return (f"title{sign}text\n" + "".join(f'{r["title"]}{sign}"{r["text"]}"\n' for r in ROWS)).encode()


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gzip"])
def test_the_same_rows_from_every_kind_and_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    path = tmp_path / f"data{kind}{'.gz' if encoding == 'gzip' else ''}"
    data = _bytes(kind)
    path.write_bytes(gzip.compress(data) if encoding == "gzip" else data.decode().encode(encoding))
    rows, notes = _read(path)
    assert rows == ROWS
    assert not notes.bad_lines


def test_parquet_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"row {i}", "n": i} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    monkeypatch.setattr(parquet_files, "ROWS_PER_BATCH", 7)
    assert _read(tmp_path / "a.parquet")[0] == rows


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_parquet_file_that_was_cut_short(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"text": [f"text number {i}" for i in range(500)]}), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=r"cut\.parquet is no whole Parquet file") as caught:
        _read(path)
    assert "copy it again" in caught.value.hint


def test_a_gzip_file_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"many words " * 1000)[:60])
    with pytest.raises(UserError, match="no whole gzip file"):
        _read(path)


def test_single_bad_lines_are_left_out_but_not_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n\nnot json\n"a string"\n[1]\n', encoding="utf-8")
    rows, notes = _read(path)
    assert rows == [{"text": "good"}, {"text": "a string"}]
    assert [number for number, _ in notes.bad_lines] == [3, 5]
    path.write_text("plain words\nmore words\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no JSON object: line 1 starts with 'plain words'"):
        _read(path)


@pytest.mark.parametrize("text", ["{not json", '{"a": 1, "b": [1, 2]}'])
def test_json_files_that_hold_no_records(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    if text.startswith("{not"):
        with pytest.raises(UserError, match="is no JSON"):
            _read(path)
    else:
        assert _read(path)[0] == [{"a": 1, "b": [1, 2]}]


def test_markdown_takes_its_title_from_the_heading_and_text_from_the_name(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("# How to *begin*\n\nStart here.\n", encoding="utf-8")
    (tmp_path / "plain.txt").write_text("Only words.\n", encoding="utf-8")
    assert _read(tmp_path / "guide.md")[0] == [
        {"title": "How to *begin", "text": "# How to *begin*\n\nStart here.\n"}
    ]
    assert _read(tmp_path / "plain.txt")[0] == [{"title": "plain", "text": "Only words.\n"}]


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\n", ""])
def test_long_texts_are_cut_between_paragraphs_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    monkeypatch.setattr(plain_text, "CELL_BYTES", 1000)
    text = separator.join(f"Absatz {i} über Äpfel und 茶。" for i in range(400))
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    rows, notes = _read(path)
    assert "".join(str(row["text"]) for row in rows) == text
    assert len(rows) > 5
    assert all(len(str(row["text"]).encode()) <= 3000 for row in rows)
    assert [row["title"] for row in rows[:2]] == ["long", "long (part 2)"]
    assert not notes.encodings
    if separator:
        assert all(str(row["text"]).endswith(separator) for row in rows[:-1])


def test_bytes_that_are_no_utf8_are_read_and_noted(tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_bytes("湖边有一间木头小屋，屋顶上长满了青苔。".encode("gb18030"))
    (tmp_path / "de.txt").write_bytes("Die Äpfel sind süß, und die Vögel singen schön.".encode("latin-1"))
    rows, notes = _read(tmp_path / "zh.txt")
    assert rows[0]["text"] == "湖边有一间木头小屋，屋顶上长满了青苔。"
    assert notes.encodings == {"gb18030": 1}
    rows, notes = _read(tmp_path / "de.txt")
    assert rows[0]["text"] == "Die Äpfel sind süß, und die Vögel singen schön."
    assert notes.encodings == {"cp1252": 1}


def test_limits_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("[]" + " " * 100, encoding="utf-8")
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 50)
    with pytest.raises(UserError, match="must be read as a whole") as caught:
        _read(tmp_path / "a.json")
    assert "jq" in caught.value.hint
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 200 + '"}', encoding="utf-8")
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    with pytest.raises(UserError, match="has a line of over"):
        _read(tmp_path / "a.jsonl")
