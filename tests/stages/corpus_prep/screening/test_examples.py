"""Examples show the place that broke the rule, and are the same whatever order documents come in."""

from __future__ import annotations

import random

import pytest

from stages.corpus_prep.screening.examples import Examples, broken_at, preview_around

FILL = "".join(f"Number {n} says {n}a and {n}b; " for n in range(40))


@pytest.mark.parametrize(
    ("reason", "planted"),
    [
        ("gopher_dup_line_frac", "\nSubscribe to us\n\nSubscribe to us\n"),
        ("gopher_duplicate_5_gram", " we are very glad you came, we are very glad you came, "),
        ("long_words", " " + "x" * 50 + " "),
        ("gopher_ellipsis", " more ... more ... more ... more ... "),
        ("gopher_quality.bullet_lines", "\n- one\n- two\n- three\n- four\n"),
        ("fineweb.short_lines", "\none\ntwo\nthree\nfour\nfive\n"),
        ("c4_javascript", " please turn on JavaScript now "),
        ("c4_lorem_ipsum", " Lorem ipsum dolor "),
        ("c4_curly_bracket", " {{{{{{ "),
        ("broken_characters", " \ufffd\ufffd\ufffd "),
        ("symbol_ratio", " #$%&/()=?*+~^|<># "),
    ],
)
def test_the_broken_place_is_shown(reason: str, planted: str) -> None:
    text = FILL + planted + FILL.replace("b;", "c;").replace("a and", "d or")
    place = broken_at(text, reason)
    assert place is not None
    start, end = place
    assert start < len(FILL) + len(planted) and end > len(FILL)
    preview = preview_around(text, reason)
    assert " ".join(planted.split())[:12] in preview or " ".join(planted.split())[-12:] in preview
    assert preview.startswith("...") and preview.endswith("...")
    assert len(preview) <= 206 and "\n" not in preview


def test_what_the_detail_quotes_is_looked_for_first() -> None:
    text = FILL + "here is Free Money for you" + FILL
    assert "Free Money" in preview_around(text, "listed_phrases", "2 listed: 'free money'")


def test_what_is_far_behind_is_not_looked_for_and_copies_are_shown_from_their_beginning() -> None:
    far = "".join(f"Line {n} is like no other of these.\n" for n in range(1000))
    assert broken_at(far[:9_000] + "Twice.\nTwice.\n", "duplicate_lines") is not None
    assert preview_around(far + "Twice.\nTwice.\n", "duplicate_lines").startswith("Line 0")
    assert preview_around("Lamp.\nLamp.\n" + far, "near_duplicate").startswith("Lamp. Lamp.")
    assert preview_around(far, "near_duplicate").endswith("...")


def test_repetition_in_chinese_is_found_by_characters() -> None:
    varied = "".join(chr(0x4E00 + n) for n in range(400))
    text = varied + "欢迎来到我们的网站请点击这里" * 2 + varied[::-1]
    place = broken_at(text, "zh_dup_ngram")
    assert place is not None and 400 <= place[0] <= 414


def test_texts_that_broke_it_as_a_whole_are_shown_from_their_beginning() -> None:
    assert preview_around("short\ntext", "too_short") == "short text"
    assert preview_around(FILL, "too_short").startswith("Number 0")
    assert preview_around("", "empty") == ""


def test_examples_do_not_depend_on_order_or_shards() -> None:
    ids = [f"{n:02}" for n in range(30)]
    whole, shards = Examples(), [Examples(), Examples()]
    for number, doc_id in enumerate(random.Random(0).sample(ids, 30)):
        if whole.wants("quality", "odd", doc_id):
            whole.add("quality", "odd", doc_id, f"text {doc_id}")
        shards[number % 2].add("quality", "odd", doc_id, f"text {doc_id}")
    shards[0].merge(shards[1])
    assert whole.of("quality", "odd") == shards[0].of("quality", "odd")
    assert whole.of("quality", "odd") == [(doc_id, f"text {doc_id}") for doc_id in ids[:3]]
    shards[0].add("quality", "odd", "00", "text of an equal document")
    again: Examples[str] = Examples()
    again.merge_rows(shards[0].as_rows())
    assert again.of("quality", "odd") == whole.of("quality", "odd")
    assert not whole.wants("quality", "odd", "99") and whole.wants("quality", "other", "99")
