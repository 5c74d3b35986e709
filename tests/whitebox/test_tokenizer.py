"""The tokenizer loses nothing and never makes a control token out of text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.chat_format import SPECIAL_TOKENS
from stages.whitebox.tokenizer import Tokenizer

SAMPLES = [
    "",
    " ",
    "  two  spaces  ",
    "\n",
    "\n\n\n\n\n\n\n",
    "a\r\n\tb\t\t c",
    "The lamp is lit.",
    "灯塔看守人",
    "يعدّ حارس المنارة القوارب",
    "🚢👩‍👩‍👧 é e\u0301 \ufeff\u200b",
    "nul \x00 and \x7f and \x1b[0m",
    "x = [i**2 for i in range(10)]\n    return x\n",
    "\u2581 the mark\u2581\u2581of\u2581 SentencePiece \u2581",
    "\u2047 <unk> <s> </s> <pad> <0x0A> \u2585",
]


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> Tokenizer:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    return Tokenizer(train_sentencepiece([text], 700, 0.9995))


@pytest.mark.parametrize("text", SAMPLES)
def test_round_trip_loses_nothing(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip_of_random_unicode(tokenizer: Tokenizer) -> None:
    draw = random.Random(7)
    ranges = [(0, 0x7F), (0, 0x2FFF), (0x4E00, 0x9FFF), (0xE000, 0x10FFFF)]
    for _ in range(2000):
        text = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 24)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_that_are_no_utf8_survive_the_way_they_were_decoded(tokenizer: Tokenizer) -> None:
    text = bytes([0x66, 0xFF, 0xC3, 0x28, 0xE2, 0x82]).decode(errors="replace")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\udc80b\ud83d")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\udea2")) == "🚢"


@pytest.mark.parametrize("name", [*SPECIAL_TOKENS, "<|unk|>", "<|bos|>", "<|eos|>", "<|pad|>"])
def test_text_never_becomes_a_control_token(tokenizer: Tokenizer, name: str) -> None:
    ids = tokenizer.encode(f"before {name} after {name}")
    assert not any(tokenizer.is_special(i) for i in ids)
    assert tokenizer.decode(ids) == f"before {name} after {name}"
    assert tokenizer.is_special(tokenizer.special_id(name))


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(SAMPLES) == [tokenizer.encode(text) for text in SAMPLES]


def test_newlines_are_hard_boundaries(tokenizer: Tokenizer) -> None:
    left, right = "the lamp", "  the boat"
    assert tokenizer.encode(f"{left}\n{right}") == [
        *tokenizer.encode(left),
        *tokenizer.encode("\n"),
        *tokenizer.encode(right),
    ]
    assert len(tokenizer.encode("\n\n\n\n")) == 1


def test_digits_stay_single(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(i) for i in tokenizer.encode("70272")] == list("70272")


def test_token_bytes_spell_the_text(tokenizer: Tokenizer) -> None:
    text = "灯 lamp\t🚢\u2581"
    assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text)) == text.encode()
    assert tokenizer.token_bytes(tokenizer.special_id("<|im_end|>")) == b""
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eos_id]) == "hi"


def test_half_a_character_decodes_to_a_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("𝄞")  # not in the vocabulary: four byte tokens
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_fixed_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 3, 700)
    assert [tokenizer.special_id(name) for name in SPECIAL_TOKENS] == list(range(4, 4 + len(SPECIAL_TOKENS)))


def test_errors_name_what_was_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no control token"):
        tokenizer.special_id("the")
    with pytest.raises(ValueError, match="700 is outside the vocabulary of 700"):
        tokenizer.token_bytes(700)
    with pytest.raises(ValueError, match=r"tokenizer\.model is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="no SentencePiece model"):
        Tokenizer.from_folder(tmp_path)
