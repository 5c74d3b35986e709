"""Whatever bytes a file holds, it gives rows or a reason, and never another exception."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.corpus_prep.reading.batches import read_batches
from stages.corpus_prep.reading.damage import FILE_REASONS, ROW_REASONS, ReadNotes
from stages.corpus_prep.reading.kinds import KINDS
from stages.corpus_prep.reading.pieces import pieces
from stages.corpus_prep.reading.readers import read_piece
from stages.corpus_prep.reading.sources import SourceFile
from tests.stages.corpus_prep.reading.test_pdf_text import make_pdf

SEEDS = {
    ".txt": "words\n\nmore 茶".encode(),
    ".jsonl": b'{"text": "a"}\n{"messages": []}\n',
    ".json": b'{"data": [{"text": "a"}]}',
    ".csv": b'title,text\n1,"a, b"\n',
    ".html": b"<html><body><h1>T</h1><ul><li>a<pre>b</pre></ul><table><tr><td>x<td>y</table></body></html>",
    ".ipynb": b'{"cells": [{"cell_type": "code", "source": ["x"], "outputs": [{"text": "y"}]}]}',
    ".eml": b"Subject: =?utf-8?q?T?=\nContent-Type: text/html; charset=utf-8\n\n<p>a</p>\n",
    ".rtf": rb"{\rtf1\ansi\uc1 a\u33590?\'e9{\b b}\par}",
    ".pdf": make_pdf([["Some words that are long enough."]]),
}
MEMBERS = {
    ".docx": (
        "word/document.xml",
        b'<d><body><p><pPr><numPr><ilvl val="0"/></numPr></pPr><r><t>a</t></r></p></body></d>',
    ),
    ".odt": (
        "content.xml",
        b'<d><body><text><h outline-level="1">a</h><list><item><p>b</p></item></list></text></body></d>',
    ),
    ".pptx": ("ppt/presentation.xml", b"<p><sldIdLst/></p>"),
    ".xlsx": ("xl/workbook.xml", b"<w><sheets><sheet/></sheets></w>"),
    ".epub": ("META-INF/container.xml", b'<c><rootfile full-path="c.opf"/></c>'),
}


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """(kind, bytes): anything, or something sound with a few bytes changed, left out or doubled."""
    kind = draw(st.sampled_from(KINDS))
    seed = MEMBERS[kind][1] if kind in MEMBERS else SEEDS.get(kind, b"PAR1words")
    data = bytearray(draw(st.one_of(st.binary(max_size=200), st.just(seed))))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        end = min(len(data), place + draw(st.integers(0, 5)))
        data[place:end] = draw(st.one_of(st.binary(max_size=3), st.just(bytes(data[place:end] * 2))))
    if kind not in MEMBERS:
        return kind, bytes(data)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr(MEMBERS[kind][0], bytes(data))
    return kind, out.getvalue()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=files())
def test_any_bytes_of_any_kind(tmp_path: Path, made: tuple[str, bytes]) -> None:
    kind, data = made
    path = tmp_path / f"a{kind}"
    path.write_bytes(data)
    file = SourceFile(path.name, path, kind, origin=path.name)
    for read in (read_piece, read_batches):
        notes = ReadNotes(on_damage="skip")
        num_rows = sum(1 for piece in pieces(file, 50) for _ in read(piece, notes))
        assert num_rows or notes.rejects or not data.strip() or kind in (".csv", ".tsv", ".json", ".txt")
        assert set(notes.reasons) <= {*FILE_REASONS, *ROW_REASONS}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (".html", b"<div>" * 30_000 + b"deep"),
        (".html", b"<ul><li>" * 5_000 + b"deep"),
        (".html", b"<table><tr><td>" * 3_000 + b"deep"),
        (".rtf", rb"{\rtf1" + b"{" * 100_000 + b"deep" + b"}" * 100_000 + b"}"),
        (".json", b'{"a":' * 50_000),
        (".eml", b"Content-Type: multipart/mixed; boundary=a\n\n" * 200 + b"deep"),
    ],
)
def test_deep_nesting(tmp_path: Path, kind: str, data: bytes) -> None:
    path = tmp_path / f"a{kind}"
    path.write_bytes(data)
    notes = ReadNotes(on_damage="skip")
    file = SourceFile(path.name, path, kind, origin=path.name)
    rows = [row for piece in pieces(file) for row in read_piece(piece, notes)]
    assert notes.rejects or "deep" in rows[0].fields["text"]
