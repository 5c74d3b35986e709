"""tokenizer.json of others: ids as `tokenizers` and transformers give them, every text back, or a refusal."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stages.runtime.errors import UserError
from stages.tokenizer.bundle import write_imported_bundle
from stages.tokenizer.importing import import_tokenizer
from stages.whitebox.chat_format import SPECIAL_TOKENS, render
from stages.whitebox.imported_tokenizer import ImportedTokenizer
from stages.whitebox.tokenizer import Tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PROPERTY = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


def byte_level(lines: list[str], pattern: str = "", **parts: Any) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if "normalizer" in parts:
        tokenizer.normalizer = parts["normalizer"]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, plain])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=parts.get("special", ["<|endoftext|>"]),
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def gpt2(lines: list[str]) -> tokenizers.Tokenizer:
    return byte_level(lines)


def llama3(lines: list[str]) -> tokenizers.Tokenizer:
    tokenizer = byte_level(lines, LLAMA3, special=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return tokenizer


def qwen(lines: list[str]) -> tokenizers.Tokenizer:
    """NFC, <|im_start|> of its own, tool markers that are no special tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(lines, LLAMA3, normalizer=normalizers.NFC(), special=special)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>")])
    return tokenizer


def sentencepiece_style(lines: list[str]) -> tokenizers.Tokenizer:
    """Llama 2: a space in front, spaces as U+2581, bytes for what is unknown."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = [f" {word}" for line in lines for word in line.split()]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *BYTES])
    tokenizer.train_from_iterator(words, trainer)
    return without_special_bytes(tokenizer)


def without_special_bytes(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] not in BYTES]
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def unigram(lines: list[str]) -> tokenizers.Tokenizer:
    """As T5 and Gemma: Metaspace."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *BYTES], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(lines, trainer)
    document = json.loads(without_special_bytes(tokenizer).to_str())
    document["model"]["byte_fallback"] = True
    document["model"]["vocab"] = [
        [piece, -30.0 if piece in BYTES or score == 0 else score]
        for piece, score in document["model"]["vocab"]
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(document))


KINDS = {"gpt2": gpt2, "llama3": llama3, "qwen": qwen, "llama2": sentencepiece_style, "unigram": unigram}
SPACE_IN_FRONT = {"llama2", "unigram"}


@pytest.fixture(scope="module")
def lines(repository: Path) -> list[str]:
    return (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8").split("\n")


@pytest.fixture(scope="module", params=list(KINDS))
def imported(request: pytest.FixtureRequest, lines: list[str], tmp_path_factory: Any) -> Any:
    """Kind, the original, the bundle's folder, and ours from that folder."""
    original = KINDS[request.param](lines)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.json").write_text(original.to_str(), encoding="utf-8")
    found = import_tokenizer({"tokenizer.json": folder / "tokenizer.json"})
    bundle = folder / "bundle"
    bundle.mkdir()
    write_imported_bundle(found.tokenizer, found.document, found.roles, bundle)
    return request.param, original, bundle, Tokenizer.from_folder(bundle)


ODD = st.text(max_size=30) | st.text("\u2581 \t\n\0abz09灯塔船<|0x41>_'", max_size=30)


def original_ids(kind: str, original: tokenizers.Tokenizer, text: str) -> list[int]:
    """What the original makes of it, past the space that it puts in front."""
    original.encode_special_tokens = True
    ids: list[int] = original.encode(text, add_special_tokens=False).ids
    return ids


def test_ids_are_the_originals_and_texts_come_back(imported: Any) -> None:
    kind, original, _, ours = imported
    markers = ("<tool_call>", "</tool_call>")  # text to us, tokens to the original Qwen

    @PROPERTY
    @given(ODD)
    def check(text: str) -> None:
        if kind == "qwen":
            text = tokenizers.normalizers.NFC().normalize_str(text)
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert not any(ours.is_special(i) for i in ids)
        if text and not any(name in text for name in (*markers, "<0x", "<unk>", "<s>", "\u2581")):
            if kind in SPACE_IN_FRONT:
                if not text.startswith(" "):
                    assert ours.encode(" " + text) == original_ids(kind, original, text)
            else:
                assert ids == original_ids(kind, original, text)

    check()


def test_transformers_reads_the_bundle_with_the_same_ids(imported: Any) -> None:
    from transformers import AutoTokenizer

    kind, _, bundle, ours = imported
    auto = AutoTokenizer.from_pretrained(bundle)
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (
        ours.bos_id,
        ours.eos_id,
        ours.pad_id,
    )
    assert len({ours.bos_id, ours.eos_id, ours.pad_id}) == 3
    draw = random.Random(5)
    for _ in range(400):
        text = "".join(draw.choices("abcdeéñ .,，。'0189\n\t🚢ж灯塔船|im_end>", k=20))
        ids = auto(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids == ours.encode(text), (kind, text)
        assert auto(text, split_special_tokens=True).input_ids == [ours.bos_id, *ids]


def test_chat_markers_are_special_tokens(imported: Any) -> None:
    _, original, _, ours = imported
    known = original.get_vocab(with_added_tokens=True)
    for name in SPECIAL_TOKENS:
        assert ours.is_special(ours.special_id(name))
        assert ours.token_bytes(ours.special_id(name)) == b""
        assert known.get(name, ours.special_id(name)) == ours.special_id(name)
    assert all(ours.special_id(name) >= len(known) for name in SPECIAL_TOKENS if name not in known)
    chat = render(
        [{"role": "user", "content": "灯 <|im_end|>"}, {"role": "assistant", "content": "hi"}], ours
    )
    assert chat.ids.count(ours.special_id("<|im_end|>")) == 2
    assert "灯 <|im_end|>" in ours.decode(chat.ids)


def test_every_id_has_its_bytes(imported: Any) -> None:
    _, original, _, ours = imported
    for text in ("The lamp is lit.", "灯塔看守人", "🚢 \x00\n"):
        assert b"".join(ours.token_bytes(i) for i in ours.encode(text)) == text.encode()
        assert [ours.piece(i) for i in ours.encode("lamp")] != []
    assert ours.vocab_size >= original.get_vocab_size()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        ours.token_bytes(ours.vocab_size)


def test_the_files_beside_say_who_is_bos(lines: list[str], tmp_path: Path) -> None:
    llama3(lines).save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|eot_id|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    files = {name: tmp_path / name for name in ("tokenizer.json", "tokenizer_config.json")}
    ours = import_tokenizer(files).tokenizer
    assert (ours.bos_id, ours.eos_id) == (0, 2)
    assert ours.piece(ours.pad_id) == "<|pad|>"


def test_composing_normalisers_are_told(lines: list[str], tmp_path: Path) -> None:
    qwen(lines).save(str(tmp_path / "tokenizer.json"))
    assert "NFC" in import_tokenizer({"tokenizer.json": tmp_path / "tokenizer.json"}).warnings[0]


def test_what_would_lose_text_is_refused(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"

    def refused(tokenizer: tokenizers.Tokenizer) -> str:
        tokenizer.save(str(path))
        with pytest.raises(UserError) as caught:
            import_tokenizer({"tokenizer.json": path})
        return str(caught.value)

    word_piece = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert "its model is WordPiece" in refused(word_piece)
    lower = byte_level(lines, normalizer=normalizers.Lowercase())
    assert "comes back as 'the lamp, the lamp" in refused(lower)
    assert "NFKC" in refused(byte_level(lines, normalizer=normalizers.NFKC()))
    split = gpt2(lines)
    split.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), split.pre_tokenizer])
    assert "Whitespace" in refused(split)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="has no model"):
        import_tokenizer({"tokenizer.json": path})
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is no JSON"):
        import_tokenizer({"tokenizer.json": path})


def test_a_stage_runs_on_an_imported_tokenizer(imported: Any, run_tokenizer: Any) -> None:
    _, _, bundle, _ = imported
    built = run_tokenizer(import_from=str(bundle))
    assert built.metrics["vocab_size"] == built.tokenizer.vocab_size
    assert isinstance(built.tokenizer, ImportedTokenizer)
    assert (built.outputs["tokenizer"] / "vocab.txt").read_text(encoding="utf-8").count("\n") > 500
    assert not (built.outputs["tokenizer"] / "tokenizer.model").exists()
