"""What the model says, before and after: the same fixed prompts side by side, and how long its answers
are."""

from __future__ import annotations

from dataclasses import dataclass

from stages.dpo.pairs import Pairs
from stages.dpo.spec import DpoConfig
from stages.runtime.session import StageSession
from stages.whitebox.chat_format import IM_END
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.reply import continuation, reply
from stages.whitebox.tokenizer import Tokenizer


@dataclass(frozen=True)
class Said:
    """Texts to the fixed prompts, and how long answers to held-out prompts are."""

    documents: dict[str, str]
    chats: dict[str, str]
    answer_tokens: float
    """Mean length."""
    endless_answers: float
    """Share of answers that did not end within the tokens that they had."""


def fixed_texts(
    config: DpoConfig, model: CausalLM, tokenizer: Tokenizer
) -> tuple[dict[str, str], dict[str, str]]:
    """What the model writes behind each beginning of a document, and to each question."""
    documents = {
        prompt: continuation(model, tokenizer, prompt, config.sample_tokens)
        for prompt in config.sample_prompts
    }
    chats = {
        prompt: reply(model, tokenizer, [{"role": "user", "content": prompt}], config.sample_tokens)
        for prompt in config.chat_prompts
    }
    return documents, chats


def show_texts(documents: dict[str, str], chats: dict[str, str], session: StageSession, step: int) -> None:
    """As samples of the report."""
    for prompt, text in documents.items():
        session.sample(prompt, text, step=step)
    for prompt, text in chats.items():
        session.sample(prompt, text, step=step, kind="chat")


def say(config: DpoConfig, model: CausalLM, tokenizer: Tokenizer, held_out: Pairs) -> Said:
    """Greedy, so that the same weights say the same."""
    was_training = model.training
    model.eval()
    documents, chats = fixed_texts(config, model, tokenizer)
    prompts = [answer.ids[: answer.start] for answer in held_out.head(config.answered_prompts).chosen]
    stop_ids = [tokenizer.eos_id, tokenizer.special_id(IM_END)]
    lengths, endless = [], 0
    for prompt in prompts:
        room = min(config.answer_tokens, model.config.context_limit - len(prompt))
        lengths.append(len(generate(model, prompt, max_new_tokens=room, stop_ids=stop_ids)))
        endless += lengths[-1] == room
    model.train(was_training)
    return Said(documents, chats, sum(lengths) / len(lengths), endless / len(lengths))
