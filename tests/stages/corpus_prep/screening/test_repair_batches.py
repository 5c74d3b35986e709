"""A batch is repaired exactly as its texts are one by one; only what needs it is touched."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus_prep.screening.repair_batches import repair_batch, repair_names, simplify_chinese
from stages.corpus_prep.text_repair import repair_text

# fmt: off
PIECES = st.sampled_from((
    "a", " ", "\t", "\n", "\r", "\r\n", "\u3000", "\u3001", "Ã", "¼", "â", "€", "™", "ï", "»", "¿",
    "e\u0301", "\u0301", "\u200b", "\ufeff", "\u00ad", "\u2028", "\x85", "\x00", "\x1b", "中", "。",
    "\u1100\u1161\u11a8", "Ａ", "\U0001f600", "\U000e0041", "\u212b", "word ", "\n\n\n", "\u202e",
))
# fmt: on
TEXT = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXT, max_size=6))
def test_a_batch_is_what_its_texts_are_one_by_one(texts: list[str]) -> None:
    repaired, bits = repair_batch(pa.array(texts, pa.large_string()))
    expected = [repair_text(text) for text in texts]
    assert repaired.to_pylist() == [one.text for one in expected]
    assert [repair_names(int(b)) for b in bits] == [one.repairs for one in expected]
    repaired.validate(full=True)


@pytest.mark.parametrize("point", [*range(0, 0x34000, 0x2000), 0xE0000, 0x10E000])
def test_every_character_alone_and_after_a_letter(point: int) -> None:
    characters = [chr(c) for c in range(point, point + 0x2000) if not 0xD800 <= c < 0xE000]
    texts = [form for c in characters for form in (f"x{c}y", f"e{c}")]
    repaired, _ = repair_batch(pa.array(texts, pa.large_string()))
    assert repaired.to_pylist() == [repair_text(text).text for text in texts]


def test_clean_texts_are_not_copied() -> None:
    texts = pa.array(["plain", "全角，标点", "", "a\n\nb"], pa.large_string())
    repaired, bits = repair_batch(texts)
    assert repaired is texts
    assert not bits.any()


def test_slices_and_empty_batches() -> None:
    texts = pa.array(["a ", "b\r\nc", "d\x00", "e"], pa.large_string())
    repaired, bits = repair_batch(texts.slice(1, 2))
    assert repaired.to_pylist() == ["b\nc", "d"]
    assert [repair_names(int(b)) for b in bits] == [("line_ends",), ("control_characters",)]
    assert repair_batch(texts.slice(0, 0))[0].to_pylist() == []


def test_traditional_characters_are_simplified_where_asked() -> None:
    texts = pa.array(["漢字轉換", "简体", "漢字の話", "plain"], pa.large_string())
    simplified, changed = simplify_chinese(texts, np.array([True, True, False, False]))
    assert simplified.to_pylist() == ["汉字转换", "简体", "漢字の話", "plain"]
    assert changed.tolist() == [True, False, False, False]
