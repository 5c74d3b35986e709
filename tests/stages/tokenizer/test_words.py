"""Words as the vocabulary learns them: without their space, their quotes and their full stop."""

from __future__ import annotations

import pytest

from stages.tokenizer.words import count_words, split_word


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("lamp", ["lamp"]),
        ("lamp.", ["lamp", "."]),
        ("torch.add?", ["torch", ".add", "?"]),
        ("`x.y`,", ["`", "x", ".y", "`,"]),
        ("'(3+31)*5'.", ["'", "(3+31)*5", "'."]),
        ("f(self,", ["f(self", ","]),
        ("it's", ["it's"]),
        ('"}}', ['"}}']),
        ('{"name":', ['{"name":']),
        ("...", ["..."]),
        ("os.path:", ["os", ".path", ":"]),
        ("a,b", ["a", ",b"]),
        ("船。", ["船。"]),
        ("", []),
    ],
)
def test_parts_of_a_word(word: str, parts: list[str]) -> None:
    assert [part for part in split_word(word) if part] == parts


def test_words_are_counted_alone_and_behind_one_space() -> None:
    counts = count_words(["a lamp, a lamp\n    lamp\tlamp  lamp"])
    assert dict(counts.words) == {"a": 2, "lamp": 5, ",": 1, "    ": 1, "  ": 1}
    assert dict(counts.behind_space) == {"lamp,": 1, "a": 1, "lamp": 1}


def test_rare_characters_end_words() -> None:
    assert dict(count_words(["ab灯cd 灯ef"], frozenset("灯")).words) == {"ab": 1, "cd": 1, " ": 1, "ef": 1}


def test_long_words_are_cut() -> None:
    assert [len(part) for part in split_word("x" * 9000)] == [4000, 4000, 1000]
