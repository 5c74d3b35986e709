"""Samples: what a model continues and answers, with control tokens by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.tokenizer.training import train_sentencepiece
from stages.whitebox.chat_format import render
from stages.whitebox.config import ModelConfig
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.reply import continuation, reply, spell
from stages.whitebox.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "Who lights the lamp?"}]


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> Tokenizer:
    text = (repository / "tests/fixtures/languages.txt").read_text(encoding="utf-8")
    return Tokenizer(train_sentencepiece([text], 600, 0.9995))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(ModelConfig(tokenizer.vocab_size, 32, 64, 1, 2, 1, 16, max_position_embeddings=64)).eval()


def test_spell_names_control_tokens(tokenizer: Tokenizer) -> None:
    call = tokenizer.special_id("<tool_call>")
    ids = [*tokenizer.encode("灯 "), call, *tokenizer.encode("{}"), tokenizer.special_id("</tool_call>")]
    assert spell(tokenizer, ids) == "灯 <tool_call>{}</tool_call>"
    assert spell(tokenizer, []) == ""


def test_reply_is_what_generation_gives(tokenizer: Tokenizer, model: CausalLM) -> None:
    prompt = render(QUESTION, tokenizer, add_generation_prompt=True).ids
    stop_ids = [tokenizer.eos_id, tokenizer.special_id("<|im_end|>")]
    expected = generate(model, prompt, max_new_tokens=6, stop_ids=stop_ids)
    assert reply(model, tokenizer, QUESTION, 6) == spell(tokenizer, expected)


def test_a_full_context_gives_no_reply(tokenizer: Tokenizer, model: CausalLM) -> None:
    assert reply(model, tokenizer, [{"role": "user", "content": "lamp " * 99}], 6) == ""


def test_continuation_begins_with_bos(tokenizer: Tokenizer, model: CausalLM) -> None:
    prompt = [tokenizer.bos_id, *tokenizer.encode("The lamp")]
    expected = generate(model, prompt, max_new_tokens=5, stop_ids=[tokenizer.eos_id])
    assert continuation(model, tokenizer, "The lamp", 5) == tokenizer.decode(expected)
    assert isinstance(continuation(model, tokenizer, "lamp " * 99, 5), str)
