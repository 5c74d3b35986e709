"""A model grows by pieces of another script: the base's ids stay, and no new piece is dead."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from stages.runtime.errors import UserError
from stages.tokenizer.alphabet import Coverage, scripts_of
from stages.tokenizer.extension import extend_model
from stages.tokenizer.sentencepiece_file import Piece, read_pieces, read_settings, replace_pieces
from stages.whitebox.chat_format import SPECIAL_TOKENS
from stages.whitebox.tokenizer import Tokenizer

COVERAGE = Coverage(1.0)
NUM_MARKERS = len(SPECIAL_TOKENS) + 1  # and padding


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")


def train(lines: list[str], **flags: Any) -> bytes:
    """A model as Llama's: a space in front, bytes for what it does not know, no padding."""
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 460,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **settings | flags
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def base(text: str) -> bytes:
    return train(["".join(c for c in line if c.isascii()) for line in text.split("\n")])


@pytest.fixture(scope="module")
def extended(base: bytes, text: str) -> bytes:
    return extend_model(base, [text], 460 + NUM_MARKERS + 60, ("Han",), COVERAGE)


def test_ids_of_the_bases_language_do_not_change(base: bytes, extended: bytes, text: str) -> None:
    before = sentencepiece.SentencePieceProcessor(model_proto=base)
    after = Tokenizer(extended)
    assert read_pieces(extended)[:460] == read_pieces(base)
    english = [line for line in text.split("\n") if "Han" not in scripts_of(line)]
    draw = random.Random(4)
    english += ["".join(draw.choices("abcdeéñ .,→…'0189\n\t🚢ж", k=20)) for _ in range(3000)]
    changed = [line for line in english if line and after.encode(" " + line) != before.encode(line)]
    assert changed == []


def test_no_new_piece_is_dead_and_each_has_the_script(extended: bytes) -> None:
    tokenizer = Tokenizer(extended)
    assert tokenizer.vocab_size == 460 + NUM_MARKERS + 60
    for token in range(460 + NUM_MARKERS, tokenizer.vocab_size):
        assert tokenizer.encode(tokenizer.piece(token)) == [token]
        assert scripts_of(tokenizer.piece(token)) in ({"Han"}, set())
        assert not set(tokenizer.piece(token)) & set("abcdefghijklmnopqrstuvwxyz .,0123456789\n🚢→")


def test_scores_go_on_below_the_bases(base: bytes, extended: bytes) -> None:
    lowest = min(piece.score for piece in read_pieces(base) if piece.kind == 1)
    new = [piece.score for piece in read_pieces(extended)[460 + NUM_MARKERS :]]
    assert max(new) < lowest
    assert new == sorted(set(new), reverse=True)


def test_texts_of_the_new_script_get_shorter_and_come_back(base: bytes, extended: bytes, text: str) -> None:
    before = sentencepiece.SentencePieceProcessor(model_proto=base)
    tokenizer = Tokenizer(extended)
    chinese = "\n".join(line for line in text.split("\n") if "灯" in line)
    assert len(tokenizer.encode(chinese)) < 0.6 * len(before.encode(chinese))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not read_settings(extended).add_dummy_prefix


def test_chat_markers_and_padding_are_appended(extended: bytes) -> None:
    tokenizer = Tokenizer(extended)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 460)
    assert [tokenizer.special_id(name) for name in SPECIAL_TOKENS] == list(range(461, 460 + NUM_MARKERS))
    assert tokenizer.decode([1, *tokenizer.encode("hi"), 2]) == "hi"


def test_scores_of_zero_would_leave_dead_pieces(base: bytes) -> None:
    """The recipe that this replaces: it is not the check that passes everything."""
    recipe = replace_pieces(
        base, [*read_pieces(base), *(Piece(t, 0.0) for t in ("灯塔", "塔看守", "灯塔看守人"))]
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=recipe)
    assert processor.encode("灯塔看守人")[-1] != 462


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"model_type": "unigram"}, "no BPE model"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "rewrites text"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
    ],
)
def test_what_would_lose_text_is_refused(flags: dict[str, Any], reason: str, text: str) -> None:
    model = train([line for line in text.split("\n") if line.isascii()], **{"vocab_size": 400} | flags)
    with pytest.raises(UserError, match=reason):
        extend_model(model, [text], 600, ("Han",), COVERAGE)


def test_scripts_that_the_base_merges_and_texts_without_them_are_refused(base: bytes, text: str) -> None:
    with pytest.raises(UserError, match="made for Latin itself"):
        extend_model(base, [text], 600, ("Latin",), COVERAGE)
    with pytest.raises(UserError, match="give 0 pieces of Hangul"):
        extend_model(base, [text], 600, ("Hangul",), COVERAGE)
    with pytest.raises(UserError, match="leaves no room") as caught:
        extend_model(base, [text], 460, ("Han",), COVERAGE)
    assert str(460 + NUM_MARKERS + 1) in caught.value.hint
    with pytest.raises(UserError, match="vocab_size asks for 9") as caught:
        extend_model(base, [text], 9999, ("Han",), COVERAGE)
    size = int(caught.value.hint.split("vocab_size = ")[1].split()[0])
    assert Tokenizer(extend_model(base, [text], size, ("Han",), COVERAGE)).vocab_size == size
