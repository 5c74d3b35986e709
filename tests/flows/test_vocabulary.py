"""Tokens of other people's tokenizer.json, against the library that defines the file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import tokenizers
from rich.console import Console
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from flows.show import show_artifact
from flows.vocabulary import read_token_bytes
from stages.runtime.store import Artifact
from tests.flows.test_show import artifact

TEXTS = ["The lamp burns all night, na\u00efve \u706f\u5854 \U0001f985.", "The lamp keeper keeps the lamp."]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's way."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    )
    return made


def byte_fallback() -> tokenizers.Tokenizer:
    """Llama 2's way."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(parts)
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(TEXTS[1:], trainers.BpeTrainer(vocab_size=320, special_tokens=names))
    return tokenizers.Tokenizer.from_str(_only_first_special(made))


def _only_first_special(made: tokenizers.Tokenizer) -> str:
    document = json.loads(made.to_str())
    document["added_tokens"] = document["added_tokens"][:1]
    return json.dumps(document)


def unigram() -> tokenizers.Tokenizer:
    """T5's way."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<s>"], unk_token="<s>")
    made.train_from_iterator(TEXTS, trainer)
    return made


@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram])
def test_the_bytes_of_tokens_make_up_the_text(make: object, tmp_path: Path) -> None:
    library = make()  # type: ignore[operator]
    library.save(str(tmp_path / "tokenizer.json"))
    spelled = read_token_bytes(tmp_path / "tokenizer.json")
    assert len(spelled) == library.get_vocab_size()
    assert spelled[0] == library.id_to_token(0).encode()
    for text in (text[::-1] for text in TEXTS):
        ids = library.encode(text).ids
        assert b"".join(spelled[i] for i in ids).decode() == text
        assert len(ids) > 5


def test_a_tokenizer_is_shown_with_its_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    rows = ["id\tkind\tpiece\tscore", "0\tcontrol\t'<s>'\t0", "1\tbyte\t'<0x00>'\t0"]
    rows += [f"{n}\ttext\t' word{n}'\t-{n}" for n in range(2, 50)]
    (folder / "vocab.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    text = io.StringIO()
    made: Artifact = artifact(tmp_path, tokenizer="tokenizer_bundle@2")
    show_artifact(made, Console(file=text, width=200))
    assert "50 tokens: control 1, byte 1, text 48" in text.getvalue()
    assert "2 ' word2'  4 ' word4'" in text.getvalue()
