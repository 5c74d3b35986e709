"""New rows of an embedding, against a plain loop and against what transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.tokenizer.alphabet import Coverage
from stages.tokenizer.extension import extend_model
from stages.tokenizer.sentencepiece_file import read_pieces, replace_pieces
from stages.tokenizer.training import Recipe, train_sentencepiece
from stages.whitebox.chat_format import SPECIAL_TOKENS
from stages.whitebox.extend_embeddings import extend_embeddings
from stages.whitebox.tokenizer import Tokenizer

WIDTH = 16


@pytest.fixture(scope="module")
def pair(repository: Path) -> tuple[Tokenizer, Tokenizer]:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    english = "".join(c for c in text if c.isascii())
    base = train_sentencepiece([english], 500, recipe=Recipe(word_scheme="compact"))
    return Tokenizer(base), Tokenizer(extend_model(base, [text], 550, ("Han",), Coverage(1.0)))


def test_rows_are_means_of_what_the_base_spells(pair: tuple[Tokenizer, Tokenizer]) -> None:
    base, extended = pair
    weight_VxD = torch.randn(base.vocab_size, WIDTH, generator=torch.Generator().manual_seed(0))
    longer_VxD = extend_embeddings(weight_VxD, base, extended)
    assert longer_VxD.shape == (550, WIDTH)
    assert torch.equal(longer_VxD[:500], weight_VxD)
    for token in range(500, 550):
        rows = [weight_VxD[i] for i in base.encode(extended.piece(token))]
        assert len(rows) >= 3  # a Chinese character is three bytes to the base
        torch.testing.assert_close(longer_VxD[token], sum(rows) / len(rows))


def test_half_precision_is_averaged_in_float32(pair: tuple[Tokenizer, Tokenizer]) -> None:
    base, extended = pair
    weight_VxD = torch.randn(base.vocab_size, WIDTH, generator=torch.Generator().manual_seed(0))
    half_VxD = extend_embeddings(weight_VxD.bfloat16(), base, extended)
    exact_VxD = extend_embeddings(weight_VxD.bfloat16().float(), base, extended)
    assert half_VxD.dtype == torch.bfloat16
    assert torch.equal(half_VxD, exact_VxD.bfloat16())


def test_rows_without_a_spelling_are_where_transformers_draws_them(repository: Path) -> None:
    """`resize_token_embeddings` draws around the mean of all rows, within 1e-9 of their covariance."""
    transformers = pytest.importorskip("transformers")
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    english = "".join(c for c in text if c.isascii())
    model_file = train_sentencepiece([english], 500, recipe=Recipe(word_scheme="compact"))
    pieces = read_pieces(model_file)
    plain = replace_pieces(model_file, [piece for piece in pieces if piece.text not in SPECIAL_TOKENS])
    base = Tokenizer(plain)
    extended = Tokenizer(extend_model(plain, [text], 540, ("Han",), Coverage(1.0)))
    config = transformers.LlamaConfig(
        vocab_size=base.vocab_size, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config)
    weight_VxD = model.get_input_embeddings().weight.detach().clone()
    ours_VxD = extend_embeddings(weight_VxD, base, extended)
    model.resize_token_embeddings(extended.vocab_size, mean_resizing=True)
    theirs_VxD = model.get_input_embeddings().weight.detach()
    assert torch.equal(theirs_VxD[: base.vocab_size], ours_VxD[: base.vocab_size])
    markers = [i for i in range(base.vocab_size, extended.vocab_size) if extended.is_special(i)]
    assert len(markers) == 14
    torch.testing.assert_close(ours_VxD[markers], theirs_VxD[markers], atol=1e-4, rtol=0)


def test_vocabularies_that_do_not_fit_are_refused(pair: tuple[Tokenizer, Tokenizer]) -> None:
    base, extended = pair
    with pytest.raises(ValueError, match="499 rows, but the base has 500"):
        extend_embeddings(torch.zeros(499, WIDTH), base, extended)
    with pytest.raises(ValueError, match="fewer than"):
        extend_embeddings(torch.zeros(550, WIDTH), extended, base)
