"""Addresses and phrases by list: as plain look-ups and regular expressions find them."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus_prep.screening import phrase_lists
from stages.corpus_prep.screening.phrase_lists import phrase_list, read_phrase_list
from stages.corpus_prep.screening.url_lists import read_url_list
from stages.runtime.errors import UserError


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://bad.example/a", "bad.example"),
        ("http://www.bad.example/", ""),
        ("https://worse.test", ".worse.test"),
        ("https://a.b.WORSE.test:8080/x?y", ".worse.test"),
        ("https://notworse.test/", ""),
        ("https://good.test/play-Casino_now.html", "/casino"),
        ("https://good.test/?q=casino", "/casino"),
        ("https://good.test/casinos", ""),
        ("https://casino.good.test/", ""),
        ("bad.example/without/scheme", "bad.example"),
        ("https://bücher.test/", ".xn--bcher-kva.test"),
        ("https://good.test/%E8%B5%8C%E5%8D%9A/1", "/赌博"),
        ("http://[broken", ""),
        ("", ""),
    ],
)
def test_addresses(tmp_path: Path, url: str, entry: str) -> None:
    listed = tmp_path / "urls.txt"
    listed.write_text("# mine\nbad.example # a host\n.worse.test\n\n/casino\n.bücher.test\n/赌博\n", "utf-8")
    assert read_url_list([listed]).entry_for(url) == entry
    assert read_url_list([listed]).entries_for([None, url]) == ["", entry]


@pytest.mark.parametrize("line", ["https://bad.example/", "two words", "/a/b"])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    listed = tmp_path / "urls.txt"
    listed.write_text(f"good.test\n{line}\n", "utf-8")
    with pytest.raises(UserError, match=r"urls.txt, line 2: "):
        read_url_list([listed])
    with pytest.raises(UserError, match="cannot read"):
        read_url_list([tmp_path / "none.txt"])


def _plain_count(phrases: list[str], text: str) -> int:
    """Each phrase by a regular expression of its own."""
    latin = "[0-9A-Za-zÀ-ɏ]"
    total = 0
    for phrase in dict.fromkeys(phrases):
        is_word = any(re.fullmatch(latin, end) for end in (phrase[0], phrase[-1]))
        around = (f"(?<!{latin})", f"(?!{latin})") if is_word else ("", "")
        pattern = f"(?=({around[0]}{re.escape(phrase)}{around[1]}))"
        total += len(re.findall(pattern, text, re.IGNORECASE | re.ASCII))
    return total


ALPHABET = st.sampled_from("abAB 1-é中文")
PHRASES = st.lists(
    st.text(ALPHABET, min_size=1, max_size=4).map(str.strip).filter(bool).map(str.lower),
    max_size=6,
    unique=True,
)


@settings(max_examples=400, deadline=None)
@given(PHRASES, st.lists(st.text(ALPHABET, max_size=30), max_size=3))
def test_the_automaton_finds_what_regular_expressions_find(phrases: list[str], texts: list[str]) -> None:
    found = phrase_list(phrases).count(pa.array(texts, pa.large_string()))
    assert found["listed_phrases"].to_pylist() == [_plain_count(phrases, text) for text in texts]


def test_hits_say_what_and_where(tmp_path: Path) -> None:
    listed = tmp_path / "words.txt"
    listed.write_text("Free Money\n赌场 # casino\nÜbel\n", "utf-8")
    texts = ["get FREE money now, free moneys not", "网上赌场赌场", "ÜBEL and übel", "clean"]
    found = read_phrase_list([listed]).count(pa.array(texts, pa.large_string()))
    assert found["listed_phrases"].to_pylist() == [1, 2, 2, 0]
    assert found["first_listed_phrase"].to_pylist() == ["Free Money", "赌场", "Übel", ""]
    assert found["first_listed_at"].to_pylist() == [4, 6, 0, -1]


def test_a_list_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrase_lists, "MAX_TABLE_BYTES", 1000)
    with pytest.raises(UserError, match="3 listed phrases need a table"):
        phrase_list([letter * 50 for letter in "abc"])
