"""What a model answers in a chat: the shortest way from messages to text, for samples and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.whitebox.chat_format import IM_END, render
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer


def reply(
    model: CausalLM, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], max_new_tokens: int
) -> str:
    """The assistant's next turn, greedy, with tool calls as they are written; "" when the context is full."""
    prompt_ids = render(messages, tokenizer, add_generation_prompt=True).ids
    stop_ids = [tokenizer.eos_id, tokenizer.special_id(IM_END)]
    if len(prompt_ids) >= model.config.context_limit:
        return ""
    return spell(tokenizer, generate(model, prompt_ids, max_new_tokens=max_new_tokens, stop_ids=stop_ids))


def continuation(model: CausalLM, tokenizer: Tokenizer, text: str, max_new_tokens: int) -> str:
    """How the model continues a document that begins with `text`, greedy."""
    room = model.config.context_limit - 1
    prompt_ids = [tokenizer.bos_id, *tokenizer.encode(text)][:room]
    ids = generate(model, prompt_ids, max_new_tokens=max_new_tokens, stop_ids=[tokenizer.eos_id])
    return tokenizer.decode(ids)


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids` with control tokens by name, as in `<tool_call>{...}</tool_call>`."""
    text, run = "", []
    for token in ids:
        if tokenizer.is_special(token):
            text += tokenizer.decode(run) + tokenizer.piece(token)
            run = []
        else:
            run.append(token)
    return text + tokenizer.decode(run)
