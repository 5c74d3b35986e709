"""Every kind of vocabulary loses nothing, and has the same ids in SentencePiece, ours and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.runtime.errors import UserError
from stages.tokenizer.alphabet import Coverage
from stages.tokenizer.extension import extend_model
from stages.tokenizer.hugging_face import tokenizer_json
from stages.tokenizer.training import Recipe, train_sentencepiece
from stages.whitebox.tokenizer import Tokenizer

PROPERTY = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
RECIPES = {
    "copyable": Recipe(),
    "compact": Recipe(word_scheme="compact"),
    "compact, all characters": Recipe(Coverage(1.0), word_scheme="compact"),
    "symbols": Recipe(word_scheme="compact", user_defined_symbols=("<think>", "||", "灯塔")),
    "unigram": Recipe(model_type="unigram", word_scheme="compact"),
}


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=[*RECIPES, "extended"])
def kind(request: pytest.FixtureRequest, text: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    if request.param == "extended":
        english = "".join(c for c in text if c.isascii())
        base = train_sentencepiece([english], 500, recipe=RECIPES["compact"])
        tokenizer = Tokenizer(extend_model(base, [text], 540, ("Han",), Coverage(1.0)))
    else:
        tokenizer = Tokenizer(train_sentencepiece([text], 640, recipe=RECIPES[request.param]))
    return tokenizer, tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))


any_text = st.text(max_size=40) | st.text("\u2581 \t\n\0abz09灯塔船<|0x41>_", max_size=40)


def test_any_text_comes_back_with_the_same_ids_everywhere(kind: Any) -> None:
    tokenizer, hugging_face = kind
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_proto)
    pieces = st.sampled_from([tokenizer.piece(i) for i in range(tokenizer.vocab_size)])

    @PROPERTY
    @given(any_text | st.lists(pieces, max_size=8).map("".join))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not any(tokenizer.is_special(i) for i in ids)
        hugging_face.encode_special_tokens = True
        assert hugging_face.encode(text, add_special_tokens=False).ids == ids
        assert hugging_face.decode(ids) == text
        if "\u2581" not in text:
            assert library.encode(text) == ids

    check()


def test_any_bytes_come_back(kind: Any) -> None:
    """Through the bytes of tokens: what is no UTF-8 has byte tokens."""
    tokenizer, _ = kind
    byte_ids = {tokenizer.token_bytes(i)[0]: i for i in range(tokenizer.vocab_size) if tokenizer.is_byte(i)}
    assert len(byte_ids) == 256

    @PROPERTY
    @given(st.binary(max_size=30))
    def check(data: bytes) -> None:
        assert b"".join(tokenizer.token_bytes(byte_ids[b]) for b in data) == data
        text = data.decode(errors="replace")
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()


def test_a_lone_surrogate_becomes_a_replacement_character(kind: Any) -> None:
    tokenizer, _ = kind
    surrogate = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])

    @PROPERTY
    @given(st.lists(st.characters() | surrogate, max_size=12).map("".join))
    def check(text: str) -> None:
        expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert tokenizer.decode(tokenizer.encode(text)) == expected

    check()


def test_digits_stand_alone_and_vocabularies_are_full(kind: Any) -> None:
    tokenizer, _ = kind
    assert [tokenizer.piece(i) for i in tokenizer.encode("70272")] == list("70272")
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size) if not tokenizer.is_byte(i)]
    assert not [p for p in pieces if len(p) > 1 and any(c.isdigit() for c in p) and "reserved" not in p]


def test_user_defined_symbols_are_one_token(text: str) -> None:
    tokenizer = Tokenizer(train_sentencepiece([text], 640, recipe=RECIPES["symbols"]))
    for symbol in ("<think>", "||", "灯塔"):
        assert len(tokenizer.encode(f"a{symbol}b")) == len(tokenizer.encode("a")) + 1 + 1


def test_the_compact_scheme_is_sentencepiece_on_its_own(text: str) -> None:
    """With every character in the alphabet nothing of ours is in its way."""
    import io

    from stages.tokenizer.training import _SETTINGS

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*text.split("\n"), " "]),
        model_writer=model,
        vocab_size=900,
        model_type="bpe",
        character_coverage=1.0,
        user_defined_symbols=Recipe().symbols,
        **_SETTINGS,
    )
    plain = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = Tokenizer(train_sentencepiece([text], 900, recipe=Recipe(Coverage(1.0), word_scheme="compact")))
    assert ours.encode(text) == plain.encode(text)


@pytest.mark.parametrize("name", list(RECIPES))
def test_learning_is_reproducible(text: str, name: str) -> None:
    first, second = (train_sentencepiece([text], 600, recipe=RECIPES[name]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["compact", "unigram"])
def test_the_largest_vocabulary_is_named(name: str) -> None:
    words = " ".join(a + b for a in "abcdefgh" for b in "stuvwxyz")
    with pytest.raises(UserError, match="too small for vocab_size = 9000") as caught:
        train_sentencepiece([words * 9], 9000, recipe=RECIPES[name])
    assert "give corpus_prep more text" in caught.value.hint
