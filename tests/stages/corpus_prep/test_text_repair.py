"""Repairs: each by name, none that harms, and a repaired text stays as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.corpus_prep.text_repair import decode_bytes, repair_text


@pytest.mark.parametrize(
    ("text", "repaired", "repairs"),
    [
        ("plain", "plain", ()),
        ("a\r\nb\rc", "a\nb\nc", ("line_ends",)),
        ("a\x00b\x1bc\ttab", "abc\ttab", ("control_characters",)),
        ("\ufeffa\u200bb\u00adc", "abc", ("invisible_characters",)),
        ("cafe\u0301", "caf\u00e9", ("nfc",)),
        ("a\u202eb\u202cc", "abc", ("direction_overrides",)),
        ("sÃ¼ÃŸe Ã„pfel", "süße Äpfel", ("mojibake",)),
        ("itâ€™s", "it\u2019s", ("mojibake",)),
        ("a  \nb\n\n\n\n\n\nc\n", "a\nb\n\n\nc", ("white_space",)),
        ("bad \ud800 half", "bad \ufffd half", ("lone_surrogates",)),
    ],
)
def test_each_repair(text: str, repaired: str, repairs: tuple[str, ...]) -> None:
    found = repair_text(text)
    assert (found.text, found.repairs) == (repaired, repairs)


@pytest.mark.parametrize(
    "text",
    [
        "全角标点，不是ＡＳＣＩＩ！（好）",
        "می\u200cخواهم",
        "👩\u200d👩\u200d👧 family",
        "ﬁne ½ ²",
        "Ã is a letter, and â too.",
        "    indented code\n\tand tabs",
        "مرحبا بالعالم",
    ],
)
def test_what_must_stay_stays(text: str) -> None:
    assert repair_text(text).text == text


@settings(max_examples=150, deadline=None)
@example("\u00c2\x08\u00a0")
@given(st.text(st.characters(), max_size=60))
def test_repairing_twice_changes_nothing_more(text: str) -> None:
    once = repair_text(text).text
    assert repair_text(once).text == once
    once.encode("utf-8")
    assert unicodedata.is_normalized("NFC", once)


GERMAN, CHINESE = "Die Äpfel sind süß.", "湖边有一间木头小屋，屋顶上长满了青苔。"


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        (b"plain", "plain", "utf-8"),
        (GERMAN.encode(), GERMAN, "utf-8"),
        (b"\xef\xbb\xbf" + GERMAN.encode(), GERMAN, "utf-8-sig"),
        (GERMAN.encode("utf-16"), GERMAN, "utf-16"),
        (b"\xfe\xff" + GERMAN.encode("utf-16-be"), GERMAN, "utf-16"),
        (GERMAN.encode("utf-16-le"), GERMAN, "utf-16-le"),
        (CHINESE.encode("gb18030"), CHINESE, "gb18030"),
        (GERMAN.encode("latin-1"), GERMAN, "cp1252"),
        (b"caf\xe9 au lait", "café au lait", "cp1252"),
        (b"", "", "utf-8"),
    ],
)
def test_encodings_are_recognised(data: bytes, text: str, encoding: str) -> None:
    assert decode_bytes(data) == (text, encoding)


def test_one_broken_byte_does_not_change_the_encoding() -> None:
    text, encoding = decode_bytes((CHINESE * 3).encode() + b"\xff" + CHINESE.encode())
    assert encoding == "utf-8 (repaired)"
    assert text.count("\ufffd") == 1
    assert text.startswith(CHINESE)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_can_be_read(data: bytes) -> None:
    text, encoding = decode_bytes(data)
    assert isinstance(text, str)
    assert encoding
