"""What the vocabulary may and may not learn."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from stages.tokenizer.alphabet import Coverage, rare_characters
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.tokenizer import Tokenizer


def test_rare_characters_are_the_least_frequent() -> None:
    text = "a" * 50 + "灯" * 30 + "塔" * 10 + "船" * 5 + "~"
    assert rare_characters(Counter(text), 2, Coverage(1.0)) == {"塔", "船"}
    assert rare_characters(Counter(text), 9, Coverage(0.9)) == {"船"}
    assert rare_characters(Counter(text), 0, Coverage(0.9)) == {"灯", "塔", "船"}  # ASCII always has pieces


def test_markers_in_the_text_are_not_learned(repository: Path) -> None:
    text = "<|im_start|>user\nhello there<|im_end|>\n<tool_call>hello<0x41></tool_call> " * 300
    text += (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(train_sentencepiece([text], 500, 1.0))
    marked = text[:200]
    ids = tokenizer.encode(marked)
    assert not any(tokenizer.is_special(i) for i in ids)
    assert 0x41 not in [tokenizer.token_bytes(i)[0] for i in ids if tokenizer.is_byte(i)]
    assert tokenizer.decode(ids) == marked


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")


def test_a_word_is_cut_the_same_way_behind_a_space(text: str) -> None:
    tokenizer = Tokenizer(train_sentencepiece([text], 700, 0.9995))
    draw = random.Random(0)
    words = [*text.split(), *("".join(draw.choices("abcdeilmnrst._灯船", k=9)) for _ in range(500))]
    twins = 0
    for word in words:
        alone = [tokenizer.token_bytes(i) for i in tokenizer.encode(word)]
        behind = [tokenizer.token_bytes(i) for i in tokenizer.encode(f" {word}")]
        assert behind in ([b" ", *alone], [b" " + alone[0], *alone[1:]])
        twins += behind[0] != b" "
    assert twins > len(words) // 10


def test_an_argument_is_made_of_the_same_tokens_in_a_question_and_in_a_call(text: str) -> None:
    tokenizer = Tokenizer(train_sentencepiece([text], 900, 0.9995))
    for argument in ("96*2*7", "(3+31)*5", "harbour.count_boats", "lighting_lamps2"):
        core = [tokenizer.piece(i) for i in tokenizer.encode(argument)]
        places = (
            f"Look up {argument}.",
            f"Is it {argument}?",
            f"Use '{argument}'.",
            f'{{"symbol": "{argument}"}}',
        )
        for place in places:
            pieces = [tokenizer.piece(i).removeprefix(" ") for i in tokenizer.encode(place)]
            assert any(pieces[at : at + len(core)] == core for at in range(len(pieces))), (place, pieces)


def test_texts_without_spaces_get_merges_instead_of_twins() -> None:
    chinese = "灯塔看守人每天傍晚都要数一数归来的船最后一条船回来以后他点亮灯把数字写进一本蓝色的本子"
    draw = random.Random(0)
    words = [chinese[at : at + draw.randint(2, 9)] for at in (draw.randrange(40) for _ in range(4000))]
    tokenizer = Tokenizer(train_sentencepiece(["\n".join(words)], 420, 1.0))
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert len(pieces) == 420
    assert not any(len(piece) > 1 and piece[0] == " " for piece in pieces if piece.strip())
    assert sum(len(piece) > 1 and not piece.isascii() for piece in pieces) > 60
