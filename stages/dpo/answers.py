"""What the model says, before and after: the same fixed prompts side by side, and how long its answers
are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.dpo.pairs import Pairs
from stages.dpo.sampled_answers import GREEDY
from stages.dpo.spec import DpoConfig
from stages.runtime.session import StageSession
from stages.whitebox.chat_format import IM_END
from stages.whitebox.model import CausalLM
from stages.whitebox.reply import continuation, reply
from stages.whitebox.rollout import Rollout, roll_out
from stages.whitebox.tokenizer import Tokenizer

ANSWERED_AT_ONCE = 16


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
    answers = _answer(config, model, tokenizer, sorted(prompts, key=len))
    model.train(was_training)
    tokens = sum(len(answer.ids) for answer in answers)
    endless = sum(not answer.finished for answer in answers)
    return Said(documents, chats, tokens / len(answers), endless / len(answers))


def _answer(
    config: DpoConfig, model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[list[int]]
) -> list[Rollout]:
    answers = []
    for start in range(0, len(prompts), ANSWERED_AT_ONCE):
        some = prompts[start : start + ANSWERED_AT_ONCE]
        answers += roll_out(
            model,
            some,
            max_new_tokens=config.answer_tokens,
            stop_ids=[tokenizer.eos_id, tokenizer.special_id(IM_END)],
            sampling=GREEDY,
            seeds=[0] * len(some),
        )
    return answers
