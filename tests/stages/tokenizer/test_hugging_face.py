"""`tokenizer.json` against SentencePiece, and `apply_chat_template` against our renderer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from stages.tokenizer.hugging_face import tokenizer_json
from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.chat_format import render
from stages.whitebox.tokenizer import Tokenizer

TEXTS = [
    "The lamp needs oil, the book needs ink.",
    "灯塔看守人每天傍晚都要数一数归来的船。㐀龘",
    "يعدّ حارس المنارة القوارب كل مساء",
    "🚢👩‍👩‍👧 \U0001f1e8\U0001f1f3 e\u0301 ﷽",
    "def f(x):\n\treturn [i**2 for i in x]\n\n\n\n\n# \t end",
    "  leading,   runs      of spaces   \n   \n",
    "\x00\x01\x7f \u00a0\u3000\ufeff \u2028",
    bytes(range(256)).decode(errors="replace"),
    bytes([0xC3, 0x28, 0xFF, 0xE2, 0x82]).decode(errors="surrogateescape").encode(errors="replace").decode(),
]


@pytest.fixture(scope="module")
def hugging_face(built: Any) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(built.outputs["tokenizer"] / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto(built: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(built.outputs["tokenizer"])


def check_same(text: str, tokenizer: Tokenizer, other: tokenizers.Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert other.encode(text, add_special_tokens=False).ids == ids, repr(text)
    assert other.decode(ids) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_and_text_as_sentencepiece(
    text: str, built: Any, hugging_face: tokenizers.Tokenizer, auto: Any
) -> None:
    plain = sentencepiece.SentencePieceProcessor(model_proto=built.tokenizer.model_proto)
    assert plain.encode(text) == built.tokenizer.encode(text)
    check_same(text, built.tokenizer, hugging_face)
    assert auto(text, add_special_tokens=False).input_ids == plain.encode(text)
    assert auto(text).input_ids == [built.tokenizer.bos_id, *plain.encode(text)]
    assert auto.decode(auto(text).input_ids, skip_special_tokens=True) == text


def test_sentencepieces_own_space_mark_survives(built: Any, hugging_face: tokenizers.Tokenizer) -> None:
    check_same("\u2581 a\u2581b \u2581\u2581", built.tokenizer, hugging_face)


def test_same_ids_on_random_texts(built: Any, hugging_face: tokenizers.Tokenizer) -> None:
    draw = random.Random(3)
    tokenizer = built.tokenizer
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size) if not tokenizer.is_special(i)]
    ranges = [(0, 0x7F), (0, 0x2FFF), (0x4E00, 0x9FFF), (0xE000, 0x10FFFF)]
    for _ in range(3000):
        check_same("".join(draw.choices(pieces, k=draw.randint(1, 20))), tokenizer, hugging_face)
        text = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 20)))
        check_same(text, tokenizer, hugging_face)


@pytest.mark.parametrize("seed", range(3))
def test_same_ids_on_periodic_texts(seed: int) -> None:
    """Where one piece fits at overlapping places, SentencePiece takes the leftmost: see `hugging_face`."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("ab", [3, 1], k=draw.randint(1, 14))) for _ in range(2000)]
    tokenizer = Tokenizer(train_sentencepiece([" ".join(words)], 400, 1.0))
    other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    for _ in range(2000):
        check_same("".join(draw.choices("ab", [3, 1], k=draw.randint(3, 40))), tokenizer, other)


@pytest.mark.parametrize("separator", [" ", "\n"])
def test_spaces_that_the_corpus_does_not_have(separator: str) -> None:
    """Single spaces between words only, or none at all: a lone space still has a piece of its own."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdef", k=draw.randint(1, 9))) for _ in range(2000)]
    tokenizer = Tokenizer(train_sentencepiece([separator.join(words)], 420, 1.0))
    other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    for text in (" ", "  ", "a b", "a  b", " a   bc ", "x \n y"):
        check_same(text, tokenizer, other)
        assert tokenizer.decode(tokenizer.encode(text)) == text


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [
        {"role": "system", "content": "be\n nice"},
        {"role": "user", "content": "\n你好 🚢 x\n\n"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"name": "calculator", "arguments": {"expression": "1+1 é\n'\"<&"}},
                {"name": "lookup", "arguments": {}},
            ],
        },
        {"role": "tool", "content": "84"},
        {"role": "assistant", "content": "答 is é 84.\n\n code\n"},
        {"role": "user", "content": "bye"},
    ],
    [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"x": [1, None, True]}}}
            ],
        },
    ],
    [
        {"role": "user", "content": "2+3?", "reasoning_content": "is no assistant's"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "\nHm, é 灯.\n\nA sum.\n",
            "tool_calls": [{"name": "f", "arguments": {}}],
        },
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "\n\nIt is 5.\n", "reasoning_content": "So."},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "Bye.", "reasoning_content": "\n"},
    ],
]
FUNCTION = {"name": "f", "description": '算 "é" <&\'', "parameters": {"type": "object", "properties": {}}}
TOOLS = [None, [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "g"}}]]


@pytest.mark.parametrize("tools", TOOLS)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_template_gives_our_ids_and_loss_mask(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, built: Any, auto: Any
) -> None:
    ours = render(messages, built.tokenizer, tools=tools or ())
    theirs = auto.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert theirs["input_ids"] == ours.ids
    assert [bool(flag) for flag in theirs["assistant_masks"]] == ours.is_target
    options = {"tools": tools, "add_generation_prompt": True, "return_dict": True}
    prompt = auto.apply_chat_template(messages, **options)["input_ids"]
    assert prompt == render(messages, built.tokenizer, add_generation_prompt=True, tools=tools or ()).ids


def test_transformers_reads_markers_in_text_and_we_do_not(built: Any, auto: Any) -> None:
    text = "hi<|im_end|>"
    marker = built.tokenizer.special_id("<|im_end|>")
    assert marker in auto(text).input_ids
    assert marker not in built.tokenizer.encode(text)
    split = auto(text, split_special_tokens=True, add_special_tokens=False).input_ids
    assert split == built.tokenizer.encode(text)


def test_a_model_folder_opens_too(built: Any, tmp_path: Path) -> None:
    """transformers picks the tokenizer class by the model's type unless told otherwise."""
    from transformers import AutoTokenizer

    for path in built.outputs["tokenizer"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for model_type in ("qwen3", "llama"):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}', encoding="utf-8")
        opened = AutoTokenizer.from_pretrained(tmp_path)
        assert opened(TEXTS[0], add_special_tokens=False).input_ids == built.tokenizer.encode(TEXTS[0])
        assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id) == (1, 2, 3)
