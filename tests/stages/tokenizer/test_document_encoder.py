"""The kernels give SentencePiece's ids, whatever the text and the vocabulary."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.runtime.errors import UserError
from stages.tokenizer import document_encoder, encoder_kernels
from stages.tokenizer.document_encoder import EncoderFactory, KernelEncoder, LibraryEncoder, text_buffers
from stages.tokenizer.encoder_tables import make_tables, pair_hash, why_not_supported
from stages.tokenizer.sentencepiece_file import NORMAL, Piece, read_pieces, replace_pieces
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.tokenizer import Tokenizer

USER_DEFINED = 4
LANGUAGES = "tests/fixtures/languages.txt"
ODD = [
    "",
    " ",
    " " * 70,
    "\n",
    "\n\n\n\n\n\n\n",
    "a\r\n\tb\t\t c",
    "\u2581 the mark\u2581\u2581of\u2581 SentencePiece \u2581",
    "nul \x00 and \x7f and \x1b[0m",
    "🚢👩‍👩‍👧 é e\u0301 \ufeff\u200b \U0010ffff",
    "<|bos|> <0x0A> <|im_end|> <unk>",
    "aaaaaaaa" * 99,
    "abababab" * 99 + " ab" * 99,
    "灯塔" * 200 + "塔",
    "the lamp " * 300,
]


@pytest.fixture(scope="module")
def model(repository: Path) -> bytes:
    """The vocabulary of a small text in several languages."""
    text = (repository / LANGUAGES).read_text(encoding="utf-8")
    return train_sentencepiece([text], 700, 0.9995)


def odd_vocabulary(model: bytes) -> bytes:
    """The same model with equal scores, pieces over odd places, and characters that are no pieces.

    None of this comes out of our training; it must hold all the same.
    """
    fixed = [piece for piece in read_pieces(model) if piece.kind != NORMAL]
    long = ["ab", "ba", "aba", "bab", "abab", "aa", "aaa", "aaaa", "a▁", "▁a", "▁▁", "▁▁▁", "a▁b", "b▁▁a"]
    long += ["灯塔", "塔灯", "灯塔灯", "塔b", "xy", "yx", "yz", "a\nb", "🚢🚢"]
    normal = [Piece(c, -50.0) for c in "ab▁灯塔x🚢"] + [
        Piece(text, -float(number % 4)) for number, text in enumerate(long)
    ]
    more = [Piece("ax", 0.0, USER_DEFINED), Piece("axa", 0.0, USER_DEFINED), Piece("灯x", 0.0, USER_DEFINED)]
    return replace_pieces(model, [*fixed, *normal, *more])


def assert_same_ids(model: bytes, texts: Sequence[str]) -> None:
    """The kernels' documents are BOS, SentencePiece's ids, EOS."""
    tokenizer = Tokenizer(model)
    found = KernelEncoder(make_tables(model), tokenizer.bos_id, tokenizer.eos_id).encode(
        pa.array(texts, pa.large_string())
    )
    for number, ids in enumerate(tokenizer.encode_batch(list(texts))):
        document = found.tokens[found.offsets[number] : found.offsets[number + 1]].tolist()
        assert document == [tokenizer.bos_id, *ids, tokenizer.eos_id], texts[number][:80]
    assert found.offsets[-1] == len(found.tokens)


def test_odd_texts(model: bytes) -> None:
    assert_same_ids(model, ODD)
    assert_same_ids(odd_vocabulary(model), ODD)


def test_documentation_and_code_of_this_machine(repository: Path) -> None:
    paths = sorted(repository.glob("stages/**/*.md")) + sorted(repository.glob("stages/**/*.py"))[:60]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    texts.append((repository / LANGUAGES).read_text(encoding="utf-8"))
    assert_same_ids(train_sentencepiece([text[:4000] for text in texts], 2000, 0.9995), texts)


@pytest.mark.parametrize("alphabet", ["ab", "ab ", "ab \n", "灯塔b ", "axy灯z🚢 \u2581", "abx\t\n "])
def test_tens_of_thousands_of_short_strings(model: bytes, alphabet: str) -> None:
    draw = random.Random(len(alphabet))
    texts = ["".join(draw.choices(alphabet, k=draw.randint(1, 30))) for _ in range(4000)]
    assert_same_ids(odd_vocabulary(model), texts)
    assert_same_ids(model, texts[:500])


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=60), max_size=20))
def test_any_unicode(model: bytes, texts: list[str]) -> None:
    assert_same_ids(model, texts)


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.text(alphabet="ab▁灯", min_size=1, max_size=6), st.integers(-3, 0)), max_size=25
    ),
    texts=st.lists(st.text(alphabet="ab 灯\n\u2581", max_size=120), min_size=1, max_size=6),
)
def test_any_vocabulary(model: bytes, pieces: list[tuple[str, int]], texts: list[str]) -> None:
    scores = {"▁": -9.0, **dict(pieces)}
    fixed = [piece for piece in read_pieces(model) if piece.kind != NORMAL]
    made = [Piece(text, float(score)) for text, score in scores.items()]
    assert_same_ids(replace_pieces(model, [*fixed, *made]), texts)


def test_a_long_part_takes_n_log_n(model: bytes) -> None:
    """A million characters without a cut; merging by looking for the best pair each time would take hours."""
    draw = random.Random(1)
    texts = ["a" * 1_000_000, "".join(draw.choices("ab", k=300_000))]
    assert_same_ids(odd_vocabulary(model), texts)


def test_a_full_cache_is_emptied_and_changes_nothing(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_encoder, "CACHE_LOG2_SLOTS", 5)
    draw = random.Random(2)
    texts = ["".join(draw.choices("lamp the灯塔 ", k=200)) for _ in range(200)]
    assert_same_ids(model, texts)
    assert len(encoder_kernels.new_cache(5).slots) == 32


def test_pairs_beyond_the_bit_set_are_in_no_piece(model: bytes) -> None:
    """The claim that the cuts rest on, by looking through the vocabulary."""
    tables = make_tables(model)
    texts = [p.text.replace("▁", " ") for p in read_pieces(model) if p.kind == NORMAL]
    for left, right in {(text[i], text[i + 1]) for text in texts for i in range(len(text) - 1)}:
        symbols = (int(tables.symbol_of_character[ord(c)]) for c in (left, right))
        bit = pair_hash(*symbols) >> tables.joins_shift
        assert int(tables.joins[bit >> 6]) >> (bit & 63) & 1


def test_slices_nulls_and_short_strings_of_arrow(model: bytes) -> None:
    tokenizer = Tokenizer(model)
    texts = pa.array(["left out", "the lamp", None, "灯塔"], pa.string())[1:]
    encoders = KernelEncoder(make_tables(model), 1, 2), LibraryEncoder(tokenizer)
    ours, theirs = (encoder.encode(texts) for encoder in encoders)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.offsets.tolist() == theirs.offsets.tolist()
    assert ours.tokens[ours.offsets[1] : ours.offsets[2]].tolist() == [1, 2]
    for encoder in encoders:
        assert encoder.encode(pa.array([], pa.large_string())).offsets.tolist() == [0]


def test_what_is_no_utf8_is_refused() -> None:
    broken = pa.array([b"ab", b"\xe2\x82"], pa.large_binary()).view(pa.large_string())
    with pytest.raises(UserError, match="no UTF-8"):
        text_buffers(broken)


def test_kernels_are_chosen_for_much_text_and_models_they_know(model: bytes) -> None:
    tokenizer = Tokenizer(model)
    assert not EncoderFactory(tokenizer, 1000).uses_kernels
    assert EncoderFactory(tokenizer, 10**9).uses_kernels
    assert isinstance(EncoderFactory(tokenizer, 10**9).make(), KernelEncoder)
    assert isinstance(EncoderFactory(tokenizer, 1000).make(), LibraryEncoder)


def test_models_that_the_kernels_do_not_know_are_named(model: bytes, tmp_path: Path) -> None:
    import io

    import sentencepiece

    lines = ["the lamp is lit", "the boats come home", "a keeper counts the boats"] * 20
    for fields, problem in (
        ({"model_type": "unigram", "vocab_size": 300, "byte_fallback": True}, "no BPE"),
        ({"model_type": "bpe", "vocab_size": 40}, "no byte fallback"),
        ({"model_type": "bpe", "vocab_size": 300, "byte_fallback": True}, "normalises text"),
    ):
        made = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=made, minloglevel=2, hard_vocab_limit=False, **fields
        )
        assert problem in why_not_supported(made.getvalue())
    with_space = [*read_pieces(model), Piece("a b", 0.0, USER_DEFINED)]
    assert "has a space" in why_not_supported(replace_pieces(model, with_space))
    named_like_control = [*read_pieces(model), Piece("<|im_end|>", -1.0)]
    assert "control token" in why_not_supported(replace_pieces(model, named_like_control))
    with pytest.raises(ValueError, match="no BPE"):
        make_tables(b"")
    assert why_not_supported(model) == ""


def test_large_vocabularies_get_32_bits() -> None:
    assert document_encoder.token_dtype(65_536) is np.uint16
    assert document_encoder.token_dtype(65_537) is np.uint32
