"""Files, folders and globs: found in a fixed order, counted by content, and every mistake has its message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.corpus_prep.reading.sources import expand, kind_of, source_digests, survey
from stages.corpus_prep.spec import SPEC, CorpusPrepConfig
from stages.runtime.errors import UserError


def _write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_folders_globs_and_files_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.jsonl.gz", "skip.bin", ".hidden/x.txt"):
        _write(tmp_path / name)
    patterns = [str(tmp_path / "*.txt"), str(tmp_path), str(tmp_path / "b.txt")]
    files = expand("sources", patterns)
    assert [(file.name, file.kind) for file in files] == [
        ("b.txt", ".txt"),
        ("a/b.jsonl.gz", ".jsonl"),
        ("a/z.md", ".md"),
    ]
    assert files[1].is_compressed


def test_files_of_one_entry_are_another_input_than_the_same_files_of_two(tmp_path: Path) -> None:
    for name in ("x1.txt", "y1.txt", "y2.txt"):
        _write(tmp_path / name)
    found = [
        source_digests(CorpusPrepConfig(sources=tuple(str(tmp_path / pattern) for pattern in patterns)))
        for patterns in (["*.txt"], ["x*.txt", "y*.txt"], ["x1.txt", "y1.txt", "y2.txt"])
    ]
    assert found[0] != found[1] != found[2] != found[0]


def test_files_of_one_name_stay_distinct(tmp_path: Path) -> None:
    one, two = _write(tmp_path / "1" / "a.txt"), _write(tmp_path / "2" / "a.txt")
    assert [file.name for file in expand("sources", [str(one), str(two)])] == ["a.txt", "a.txt (2)"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.TXT", ".txt"),
        ("a.b.json.gz", ".json"),
        ("a.csv.zst", ".csv"),
        ("a.HTM", ".html"),
        ("a.ndjson", ".jsonl"),
        ("a.docx", ".docx"),
        ("a.pdf.gz", ""),
        ("a.gz", ""),
        ("a", ""),
        ("a.png", ""),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    _write(tmp_path / "wiki.parquet")
    with pytest.raises(UserError, match=r"wikl.parquet does not exist \(did you mean 'wiki.parquet'\?\)"):
        expand("sources", [str(tmp_path / "wikl.parquet")])
    with pytest.raises(UserError, match="there is no folder"):
        expand("sources", [str(tmp_path / "no" / "wiki.parquet")])


def test_an_empty_folder_and_one_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no readable file \(it is empty\)"):
        expand("sources", [str(tmp_path / "empty")])
    _write(tmp_path / "pictures" / "a.png")
    with pytest.raises(UserError, match=r"only \.png") as caught:
        expand("sources", [str(tmp_path / "pictures")])
    assert ".jsonl" in caught.value.hint


def test_a_glob_without_matches_and_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="matches no readable file"):
        expand("benchmark_sources", [str(tmp_path / "*.parquet")])
    with pytest.raises(UserError, match="a picture") as caught:
        expand("sources", [str(_write(tmp_path / "a.png"))])
    assert ";kind=txt" in caught.value.hint
    (file,) = expand("sources", [f"{_write(tmp_path / 'service.log')};kind=txt"])
    assert file.kind == ".txt"


def test_what_lies_beside_readable_files_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.txt", "b.xml", "c.doc", "d.parquet.gz"):
        _write(tmp_path / name)
    os.mkfifo(tmp_path / "e.txt")
    (tmp_path / "f.txt").symlink_to(tmp_path / "f.txt")
    refused = {reject.path: reject.reason for reject in survey("sources", [str(tmp_path)]).refused}
    assert refused == {
        "b.xml": "unknown_kind",
        "c.doc": "unknown_kind",
        "d.parquet.gz": "unknown_kind",
        "e.txt": "not_a_file",
        "f.txt": "not_a_file",
    }
    digests = source_digests(CorpusPrepConfig(sources=(str(tmp_path),)))
    assert {name for name in digests if name.startswith("refused")} == {f"refused {name}" for name in refused}


def test_links_that_lead_in_circles_are_followed_once(tmp_path: Path) -> None:
    _write(tmp_path / "data" / "a.txt")
    _write(tmp_path / "elsewhere" / "b.txt")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert [file.name for file in expand("sources", [str(tmp_path / "data")])] == ["a.txt", "more/b.txt"]


def test_options_of_an_entry_reach_its_files_and_count(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt")
    (file,) = expand("sources", [f"{path};weight=2;licence=CC0-1.0;filters=-c4"])
    assert (file.weight, file.licence, file.filters, file.origin) == (2.0, "CC0-1.0", ("-c4",), "a.txt")
    plain = source_digests(CorpusPrepConfig(sources=(str(path),)))
    weighted = source_digests(CorpusPrepConfig(sources=(f"{path};weight=2",)))
    assert weighted == plain | {"000 a.txt options": "weight=2"}


def test_digests_count_content_and_name_but_not_the_folder(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "here" / "a.txt", "one"), _write(tmp_path / "there" / "a.txt", "one")
    digests = [source_digests(CorpusPrepConfig(sources=(str(path),))) for path in (first, second)]
    assert digests[0] == digests[1]
    assert list(digests[0]) == ["000 a.txt"]
    second.write_text("two", encoding="utf-8")
    os.utime(second, ns=(1, 1))
    assert source_digests(CorpusPrepConfig(sources=(str(second),))) != digests[0]


def test_benchmark_sources_count_beside_the_harvest(tmp_path: Path) -> None:
    path = _write(tmp_path / "q.jsonl", "{}")
    config = CorpusPrepConfig(packages=("ftfy",), benchmark_sources=(str(path),))
    assert list(source_digests(config)) == ["package ftfy", "000 q.jsonl"]
    assert "sources" not in SPEC.key_config(config)
    assert SPEC.key_config(config)["packages"] == ["ftfy"]
