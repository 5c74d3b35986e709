"""Entries of `sources` mean the same on the command line and in TOML, and mistakes in them have messages."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus_prep.reading.source_entries import SourceEntry, as_text, at_full_path, parse_entry
from stages.runtime.errors import UserError


def test_the_two_ways_to_write_an_entry() -> None:
    line = "notes/*.md;weight=2;max_megabytes=1.5;language=zh;licence=CC-BY-4.0;filters=-c4,+gopher;kind=txt"
    table = tomllib.loads(
        'source = {path = "notes/*.md", weight = 2, max_megabytes = 1.5, lang = "zh", license = "CC-BY-4.0",'
        ' filters = ["-c4", "+gopher"], kind = ".txt"}'
    )["source"]
    expected = SourceEntry("notes/*.md", 2.0, 1.5, "zh", "CC-BY-4.0", ("-c4", "+gopher"), ".txt")
    assert parse_entry("sources", line) == parse_entry("sources", table) == expected
    assert parse_entry("sources", as_text("sources", table)) == expected
    assert as_text("sources", "notes/") == "notes/"
    assert parse_entry("sources", "notes/") == SourceEntry("notes/")


@given(
    weight=st.floats(0.001, 1e6).map(lambda x: float(f"{x:g}")),
    licence=st.sampled_from(["", "MIT", "CC BY 4.0"]),
    language=st.sampled_from(["", "en", "zh"]),
)
def test_what_is_written_is_read_again(weight: float, licence: str, language: str) -> None:
    table = {"path": "a b.txt", "weight": weight, "licence": licence, "language": language}
    entry = parse_entry("sources", table)
    assert parse_entry("sources", as_text("sources", table)) == entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a.txt;wieght=2", r"unknown option 'wieght' \(did you mean 'weight'\?\)"),
        ("a.txt;weight=-1", "expected a number above 0"),
        ("a.txt;weight=two", "could not convert"),
        ("a.txt;weight", "'weight' is no option"),
        ("a.txt;kind=jsonlines", r"did you mean '\.jsonl'"),
        ("a.txt;filters=c4", "expected -NAME"),
        (";weight=2", "names no path"),
    ],
)
def test_mistakes(entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_entry("sources", entry)
    assert caught.value.hint


def test_a_file_with_a_semicolon_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a;b=1.txt"
    path.write_text("x", encoding="utf-8")
    assert parse_entry("sources", str(path)).path == str(path)


def test_full_paths_leave_addresses_and_options_alone(tmp_path: Path) -> None:
    assert at_full_path("https://a.org/x.txt;weight=2", tmp_path) == "https://a.org/x.txt;weight=2"
    assert at_full_path("notes/*.md;weight=2", tmp_path) == f"{tmp_path}/notes/*.md;weight=2"
