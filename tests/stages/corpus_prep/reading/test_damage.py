"""Whatever is wrong with a file is reported with its reason, and skipped or stopped at as it is set."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus_prep.reading import lines, readers, streams
from stages.corpus_prep.reading.batches import read_batches
from stages.corpus_prep.reading.damage import FILE_REASONS, ROW_REASONS, ReadNotes
from stages.corpus_prep.reading.pieces import Piece, pieces
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile, kind_of
from stages.runtime.errors import RetryableError, UserError


def _file(path: Path) -> SourceFile:
    return SourceFile(path.name, path, kind_of(path), origin=path.name)


def _read(path: Path) -> tuple[list[ReadRow], ReadNotes]:
    notes = ReadNotes(on_damage="skip")
    return list(read_piece(Piece(_file(path)), notes)), notes


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return out.getvalue()


def _parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": [f"number {n}" for n in range(1000)]}), out)
    return out.getvalue()


CONTAINER = b'<container><rootfiles><rootfile full-path="c.opf"/></rootfiles></container>'
DAMAGED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "cut parquet": ("a.parquet", lambda: _parquet()[:500], "broken"),
    "parquet with a hole": ("a.parquet", lambda: b"PAR1" + b"\0" * 500 + _parquet()[-600:], "broken"),
    "empty parquet": ("a.parquet", lambda: b"", "broken"),
    "cut gzip": ("a.jsonl.gz", lambda: gzip.compress(os.urandom(5000).hex().encode())[:900], "cut_short"),
    "gzip that is none": ("a.txt.gz", lambda: b"plain words", "broken"),
    "zstd that is none": ("a.txt.zst", lambda: b"plain words", "broken"),
    "zip that is none": ("a.docx", lambda: b"plain words", "broken"),
    "zip without a document": ("a.docx", lambda: _zip({"other.xml": b"<a/>"}), "broken"),
    "broken xml": ("a.docx", lambda: _zip({"word/document.xml": b"<a><b></a>"}), "broken"),
    "entities": (
        "a.docx",
        lambda: _zip({"word/document.xml": b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}),
        "bomb",
    ),
    "zip bomb": ("a.docx", lambda: _zip({"word/document.xml": b" " * (40 << 20)}), "bomb"),
    "book without chapters": (
        "a.epub",
        lambda: _zip({"META-INF/container.xml": CONTAINER, "c.opf": b"<package/>"}),
        "no_text",
    ),
    "pdf named txt": ("a.txt", lambda: b"%PDF-1.4\n%...", "wrong_suffix"),
    "zip named jsonl": ("a.jsonl", lambda: _zip({"a": b"b"}), "wrong_suffix"),
    "gzip named csv": ("a.csv", lambda: gzip.compress(b"a,b\n"), "wrong_suffix"),
    "old word named docx": ("a.docx", lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "password"),
    "text named pdf": ("a.pdf", lambda: b"plain words", "broken"),
    "cut pdf": ("a.pdf", lambda: b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog", "broken"),
    "no json": ("a.json", lambda: b"{not json", "broken"),
    "deep json": ("a.json", lambda: b"[" * 200_000, "broken"),
    "no objects": ("a.jsonl", lambda: b"plain\nwords\n", "no_records"),
    "notebook without cells": ("a.ipynb", lambda: b"{}", "broken"),
    "page without text": ("a.html", lambda: b"<html><body><img src='a.png'></body></html>", "no_text"),
    "rtf that is none": ("a.rtf", lambda: b"plain words", "broken"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_skipped_with_its_reason_or_stops(tmp_path: Path, case: str) -> None:
    name, make, reason = DAMAGED[case]
    path = tmp_path / name
    path.write_bytes(make())
    _, notes = _read(path)
    assert [reject.reason for reject in notes.rejects if reject.reason in FILE_REASONS] == [reason]
    assert notes.rejects[-1].path == name
    assert notes.rejects[-1].detail
    assert set(notes.reasons) <= {*FILE_REASONS, *ROW_REASONS}
    with pytest.raises(UserError) as caught:
        list(read_piece(Piece(_file(path)), ReadNotes(on_damage="stop")))
    assert str(path) in caught.value.message
    assert caught.value.hint
    notes = ReadNotes(on_damage="skip")
    assert list(read_batches(Piece(_file(path)), notes)) in ([], [[]])
    assert notes.reasons[reason] == 1


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nothing.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.txt"))
        for path in sorted(tmp_path.iterdir()):
            rows, notes = _read(path)
            assert not rows
            assert dict(notes.reasons) == {"not_a_file": 1}, path


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("words", encoding="utf-8")

    def refuse(*_args: object, **_more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(streams, "open", refuse, raising=False)  # root may read everything
    assert dict(_read(path)[1].reasons) == {"no_permission": 1}


def test_an_empty_file_is_noted_and_stops_nothing(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(b"")
        notes = ReadNotes(on_damage="stop")
        assert not list(read_piece(Piece(_file(tmp_path / name)), notes))
        assert dict(notes.reasons) == {"empty": 1}


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_is_given_up_early(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FREE_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / ("a.txt.gz" if kind == "gzip" else "a.txt.zst")
    with pa.CompressedOutputStream(str(path), kind) as out:
        for _ in range(64):
            out.write(b"\n" * (1 << 20))
    rows, notes = _read(path)
    assert not rows
    assert dict(notes.reasons) == {"bomb": 1}
    with pa.CompressedOutputStream(str(path), kind) as out:  # text that repeats itself is none
        out.write("".join(f"line {n} of a log\n" for n in range(200_000)).encode())
    assert not _read(path)[1].reasons


def test_packed_files_of_several_members(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'))
    assert [row.fields["text"] for row in _read(path)[0]] == ["a", "b"]


def test_rows_before_the_damage_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = b"".join(json.dumps({"text": os.urandom(500).hex()}).encode() + b"\n" for _ in range(3000))
    packed = gzip.compress(data)
    path.write_bytes(packed[: len(packed) // 2])
    rows, notes = _read(path)
    assert 0 < len(rows) < 3000
    assert dict(notes.reasons) == {"cut_short": 1}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("text", ["Plain words\nand more.\n", "湖边有一间木头小屋，\n屋顶上长满了青苔。\n"])
def test_utf16_with_a_mark_and_without(tmp_path: Path, encoding: str, mark: bool, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((("\ufeff" if mark else "") + text).encode(encoding))
    rows, notes = _read(path)
    assert [row.fields["text"].lstrip("\ufeff") for row in rows] == [text]
    assert rows[0].begin == -1
    assert notes.encodings == {"utf-16" if mark else encoding: 1}


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "latin-1", "cp1252"])
def test_other_encodings_are_not_taken_for_utf16(encoding: str) -> None:
    text = {"gb18030": "湖边有一间木头小屋，\n屋顶"}.get(encoding, "Die Äpfel sind süß,\nund schön.")
    assert streams.utf16_encoding(text.encode(encoding)) == ""
    assert streams.utf16_encoding(bytes(range(256)) * 4) == ""


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 3, encoding="utf-8")
    for read in (read_piece, read_batches):
        rows = read(pieces(_file(path))[0], ReadNotes(on_damage="skip"))
        next(rows)
        with path.open("a", encoding="utf-8") as out:
            out.write('{"text": "b"}\n')
        with pytest.raises(RetryableError, match=r"changed while it was read: it had \d+ bytes, now \d+"):
            list(rows)


def test_half_a_file_that_somebody_is_writing_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(_parquet()[:300])
    read_parquet = readers.read_parquet

    def written_meanwhile(*args: object) -> object:
        path.write_bytes(_parquet()[:600])
        return read_parquet(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(readers, "read_parquet", written_meanwhile)
    with pytest.raises(RetryableError, match="changed"):
        _read(path)


def test_a_line_over_the_limit_is_refused_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 3 << 20)
    monkeypatch.setattr("stages.corpus_prep.reading.batches.MAX_LINE_BYTES", 3 << 20)
    path = tmp_path / "a.jsonl"
    long = b'{"text": "' + b"x" * (5 << 20) + b'"}\n'
    path.write_bytes(b'{"text": "a"}\n' + long + b'{"text": "b"}\n')
    rows, notes = _read(path)
    assert [row.fields["text"] for row in rows] == ["a", "b"]
    (reject,) = notes.rejects
    assert (reject.reason, reject.line, reject.begin) == ("line_too_long", 2, 14)
    assert f"{len(long) - 1:,} bytes" in reject.detail
    also = ReadNotes(on_damage="skip")
    read = [part for part in read_batches(Piece(_file(path)), also) if len(part)]
    assert [text for part in read for text in part.column("text").to_pylist()] == ["a", "b"]  # type: ignore[union-attr]
    assert also.rejects == notes.rejects


def test_rows_of_csv_that_break_its_rules_are_refused_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 200)
    path = tmp_path / "a.csv"
    path.write_text(f'title,text\n1,a\n2,"{"x" * 150}\n{"y" * 100}"\n3,c\n', encoding="utf-8")
    rows, notes = _read(path)
    assert rows[0].fields["text"] == "a"
    assert rows[-1].fields["text"] == "c"
    assert dict(notes.reasons) == {"bad_csv": 1}


def test_rejects_can_be_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('bad\n{"text": "good"}\nbad\n', encoding="utf-8")
    told: list[tuple[str, int]] = []
    notes = ReadNotes(on_reject=lambda reject: told.append((reject.reason, reject.line)))
    assert len(list(read_piece(Piece(_file(path)), notes))) == 1
    assert told == [("bad_json", 1), ("bad_json", 3)]
    assert not notes.rejects
    assert notes.reasons["bad_json"] == 2
