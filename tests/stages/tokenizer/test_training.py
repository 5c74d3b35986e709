"""What the vocabulary may and may not learn."""

from __future__ import annotations

from pathlib import Path

from stages.tokenizer.training import rare_characters, train_sentencepiece, training_lines
from stages.whitebox.tokenizer import Tokenizer


def test_rare_characters_are_the_least_frequent() -> None:
    text = "a" * 50 + "灯" * 30 + "塔" * 10 + "船" * 5 + "~"
    assert rare_characters([text], 2, 1.0) == {"塔", "船"}
    assert rare_characters([text], 9, 0.9) == {"船"}
    assert rare_characters([text], 0, 0.9) == {"灯", "塔", "船"}  # ASCII always has pieces


def test_training_lines_break_at_newlines_tabs_and_rare_characters() -> None:
    lines = list(training_lines(["  a\tb\n\nc灯d", "x" * 9000], frozenset("灯")))
    assert lines == ["  a", "b", "c", "d", "x" * 4000, "x" * 4000, "x" * 1000]


def test_markers_in_the_text_are_not_learned(repository: Path) -> None:
    text = "<|im_start|>user\nhello there<|im_end|>\n<tool_call>hello<0x41></tool_call> " * 300
    text += (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(train_sentencepiece([text], 500, 1.0))
    marked = text[:200]
    ids = tokenizer.encode(marked)
    assert not any(tokenizer.is_special(i) for i in ids)
    assert 0x41 not in [tokenizer.token_bytes(i)[0] for i in ids if tokenizer.is_byte(i)]
    assert tokenizer.decode(ids) == marked
