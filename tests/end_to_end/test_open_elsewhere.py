"""What the chain makes opens in transformers, unpatched, and gives the same numbers and words."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from stages.whitebox.checkpoint import load_model
from stages.whitebox.generate import generate
from stages.whitebox.tokenizer import Tokenizer

pytestmark = pytest.mark.end_to_end

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PROMPTS = ["The lighthouse", "def area(", "图书馆"]
TEXTS = [
    "The keeper counted the waves.",
    "灯塔看守人数着海浪。",
    "كان الحارس يعد الأمواج.",
    "🙂👩‍🔬🏳️‍🌈",
    "def f(x):\n\treturn x**2  # tabs,  spaces\n\n\n\n\nend",
    b"\xff\xfe broken \x80 bytes".decode("utf-8", errors="replace"),
    " leading and trailing  ",
    "",
]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_transformers_gives_the_same_logits_and_the_same_text(tiny: Any, stage: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.artifact(stage).part("model")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    ours, tokenizer = load_model(folder).eval(), Tokenizer.from_folder(folder)
    for prompt in PROMPTS:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        assert their_tokenizer(prompt)["input_ids"] == ids
        with torch.no_grad():
            difference = (ours(torch.tensor([ids])) - theirs(torch.tensor([ids])).logits).abs().max()
        assert difference < 1e-4
        stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        mine = generate(ours, ids, max_new_tokens=24, stop_ids=set(stops))
        full = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0].tolist()
        new = [token for token in full[len(ids) :] if token not in stops]
        assert new == mine
        text = tokenizer.decode(mine)
        if REPLACEMENT not in text:  # an untrained model writes broken bytes, which each marks in its own way
            assert their_tokenizer.decode(new, skip_special_tokens=True) == text


def test_tokenizer_json_gives_the_ids_of_sentencepiece(tiny: Any) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    folder = tiny.artifact("tokenizer").part("tokenizer")
    theirs = AutoTokenizer.from_pretrained(folder)
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in TEXTS:
        expected = reference.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected
        assert reference.decode(expected) == text
