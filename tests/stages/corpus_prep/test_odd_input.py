"""A folder of odd files goes through the whole stage: each is documents, or a reject with its reason."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pypdf
import pytest

from stages.corpus_prep.reading import lines
from stages.runtime.errors import UserError
from tests.stages.corpus_prep.reading.test_pdf_text import make_pdf

SMALL = {"num_tool_conversations": 20, "num_question_conversations": 20, "num_scenarios": 5, "num_workers": 1}
ENGLISH = "The ferry crosses the river twice a day, and in winter the men break the ice with long iron poles."
CHINESE = "湖边有一间木头小屋，屋顶上长满了青苔，每到傍晚，老人就在窗前点起一盏灯，等着晚归的渔船。"


def odd_files(folder: Path) -> None:
    """One of each kind of trouble, beside two files that are as they should be."""
    folder.mkdir()
    (folder / "good.txt").write_text(ENGLISH, encoding="utf-8")
    (folder / "utf16.txt").write_bytes(CHINESE.encode("utf-16"))
    rows = [
        {"text": ENGLISH.replace("ferry", "mill"), "about": {"tags": ["a", None]}, "score": None},
        {"text": None, "about": None, "score": 1.5},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "nested.parquet")
    (folder / "cut.pdf").write_bytes(make_pdf([[ENGLISH]])[:300])
    (folder / "scan.pdf").write_bytes(make_pdf([["x"]], picture=True))
    (folder / "open.pdf").write_bytes(make_pdf([["Words that nobody may read."]]))
    locked = pypdf.PdfWriter(clone_from=folder / "open.pdf")
    locked.encrypt("open sesame", algorithm="RC4-128")
    locked.write(folder / "locked.pdf")
    (folder / "open.pdf").unlink()
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("word/document.xml", b" " * (40 << 20))
    (folder / "bomb.docx").write_bytes(bomb.getvalue())
    long = json.dumps({"text": "x" * 3_000_000})
    (folder / "long.jsonl").write_text(f"{long}\n{json.dumps({'text': ENGLISH + ' So it is.'})}\n")
    (folder / "empty.md").write_bytes(b"")
    (folder / "drawing.cad").write_bytes(b"\0\1\2")
    (folder / "circle").symlink_to(folder)
    (folder / "itself.txt").symlink_to(folder / "itself.txt")


def test_every_odd_file_is_read_or_refused_with_its_reason(
    run_stage: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr("stages.corpus_prep.reading.batches.MAX_LINE_BYTES", 1 << 20)
    odd_files(tmp_path / "in")
    settings = {"on_damage": "skip", "near_duplicate_similarity": 0, **SMALL}
    result = run_stage(sources=(str(tmp_path / "in"),), **settings)
    texts = {(row["source"], row["text"]) for row in result.rows("documents")}
    assert texts == {
        ("good.txt", ENGLISH),
        ("utf16.txt", CHINESE),
        ("nested.parquet", ENGLISH.replace("ferry", "mill")),
        ("long.jsonl", f"{ENGLISH} So it is."),
    }
    reasons = {row["source"]: row["reason"] for row in result.rows("rejects")}
    assert reasons == {
        "cut.pdf": "broken",
        "scan.pdf": "image_only",
        "locked.pdf": "password",
        "bomb.docx": "bomb",
        "long.jsonl": "line_too_long",
        "nested.parquet": "empty",
        "empty.md": "empty",
        "drawing.cad": "unknown_kind",
        "itself.txt": "not_a_file",
    }
    with pytest.raises(UserError) as caught:
        run_stage(sources=(str(tmp_path / "in"),), on_damage="stop", **SMALL)
    assert str(tmp_path / "in") in caught.value.message


def test_a_language_that_nothing_is_in(run_stage: Callable[..., Any], tmp_path: Path) -> None:
    for name, text in (("english", ENGLISH), ("chinese", CHINESE)):
        rows = (json.dumps({"text": f"{text} ({n})"}, ensure_ascii=False) + "\n" for n in range(4))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    sources = tuple(str(tmp_path / f"{name}.jsonl") for name in ("english", "chinese"))
    settings = {"near_duplicate_similarity": 0, **SMALL}
    with pytest.raises(UserError, match="no document that it could keep") as caught:
        run_stage(sources=sources, languages=("ja",), **settings)
    assert "other_language (quality) 8" in caught.value.hint
    half = run_stage(sources=sources, languages=("zh",), **settings)  # the first source has none
    assert {row["source"] for row in half.rows("documents")} == {"chinese.jsonl"}
    left_out = {(row["source"], row["reason"], row["detail"]) for row in half.rows("rejects")}
    assert left_out == {("english.jsonl", "other_language", "en")}
