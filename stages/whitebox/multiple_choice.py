"""Multiple choice by log-likelihood: the answer is the choice that the model finds most likely.

Scores equal those of lm-evaluation-harness 0.4.13 (a test compares): a choice's score is the sum of the
log-probabilities of its tokens behind the question; `acc` takes the highest sum, `acc_norm` the highest sum
per character, `acc_bytes` per UTF-8 byte, for long choices have low sums whatever they say.

The question is read once and its keys and values are shared by its choices; questions of equal length are
read together.

Shapes: Q questions, R rows (choices of all those questions), T tokens, D width, V vocabulary, C choices.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.whitebox.chat_format import render
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.losses import IGNORED, token_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

Scores = NDArray[np.float64]


class TextEncoder(Protocol):
    """What plain prompts need of a tokenizer."""

    bos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without special tokens."""
        ...


@dataclass(frozen=True)
class Question:
    """One item: exactly one of the choices is right."""

    question_id: str
    task: str
    question: str
    choices: tuple[str, ...]
    answer_index: int


@dataclass(frozen=True)
class Prompt:
    """A question as ids: what stands before the choices, and each choice."""

    context_ids: tuple[int, ...]
    choice_ids: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest choice."""
        return max(len(ids) for ids in self.choice_ids)


def plain_prompt(question: Question, tokenizer: TextEncoder) -> Prompt:
    """BOS, "Question: ...\\nAnswer:", and each choice behind a space: text as a document may contain it."""
    context = f"Question: {question.question}\nAnswer:"
    context_ids = tokenizer.encode(context)
    # Encoded together and then cut, because a token may not begin where the choice does (as lm-eval does it).
    wholes = [tokenizer.encode(f"{context} {choice}") for choice in question.choices]
    choice_ids = tuple(tuple(whole[len(context_ids) :]) for whole in wholes)
    return Prompt((tokenizer.bos_id, *context_ids), choice_ids)


def chat_prompt(question: Question, tokenizer: Tokenizer) -> Prompt:
    """The question as a user's turn; each choice is what the assistant says."""
    context = render([{"role": "user", "content": question.question}], tokenizer, add_generation_prompt=True)
    return Prompt(tuple(context.ids), tuple(tuple(tokenizer.encode(choice)) for choice in question.choices))


PLAIN, CHAT = "plain, 0-shot", "chat, 0-shot"
PROTOCOLS: Mapping[str, Callable[[Question, Tokenizer], Prompt]] = {PLAIN: plain_prompt, CHAT: chat_prompt}
"""How a question is put to a model. Numbers of different protocols are different numbers."""


@torch.no_grad()
def score_choices(
    model: CausalLM,
    prompts: Sequence[Prompt],
    *,
    max_rows: int = 64,
    on_scored: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scores]:
    """Per prompt, the sum of log-probabilities of each choice, in nats.

    A question too long for the model loses its beginning, so that its longest choice still fits. A quantized
    model should be loaded with `fast_decode=False`, or single rows are rounded differently from many.

    Args:
        max_rows: choices that are scored at once.
        on_scored: called with the number of prompts done and the number of all.

    Raises:
        ValueError: a choice is empty, or does not fit the model by itself.
    """
    fitted = [_fit(prompt, model.config.max_position_embeddings) for prompt in prompts]
    weight_VxD = model.output_weight()
    scores: dict[int, Scores] = {}
    for indices in _groups(fitted, max_rows):
        rows_of = _score_group(model, weight_VxD, [fitted[index] for index in indices])
        scores |= dict(zip(indices, rows_of, strict=True))
        on_scored(len(scores), len(prompts))
    return [scores[index] for index in range(len(prompts))]


def predict(scores: Scores, choices: Sequence[str], metric: str) -> int:
    """Index of the best choice; of equally good ones the first.

    Args:
        metric: "acc" (sum), "acc_norm" (per character) or "acc_bytes" (per UTF-8 byte).
    """
    return int(np.argmax(scores / LENGTHS[metric](choices)))


LENGTHS: Mapping[str, Callable[[Sequence[str]], Scores]] = {
    "acc": lambda choices: np.ones(len(choices)),
    "acc_norm": lambda choices: np.array([float(len(choice)) for choice in choices]),
    "acc_bytes": lambda choices: np.array([float(len(choice.encode())) for choice in choices]),
}
"""By what each metric divides a choice's sum."""


def chance(questions: Sequence[Question]) -> float:
    """Accuracy to expect of guessing."""
    return float(np.mean([1 / len(question.choices) for question in questions]))


def best_constant(questions: Sequence[Question]) -> float:
    """Accuracy of always giving the same index, the one that is right most often: no model needs more."""
    most_common = Counter(question.answer_index for question in questions).most_common(1)
    return most_common[0][1] / len(questions)


def _fit(prompt: Prompt, max_tokens: int) -> Prompt:
    if any(not ids for ids in prompt.choice_ids):
        raise ValueError("a choice has no tokens; expected some text in every choice")
    # The last token of a choice is predicted but never read.
    room = max_tokens - (prompt.longest - 1)
    if room < 1:
        raise ValueError(f"a choice of {prompt.longest} tokens does not fit a model of {max_tokens}")
    return Prompt(prompt.context_ids[-room:], prompt.choice_ids)


def _groups(prompts: Sequence[Prompt], max_rows: int) -> Iterator[list[int]]:
    """Indices of prompts with equally long contexts, at most `max_rows` choices together."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt.context_ids)].append(index)
    for length in sorted(by_length):
        group: list[int] = []
        num_rows = 0
        for index in sorted(by_length[length], key=lambda index: prompts[index].longest):
            if group and num_rows + len(prompts[index].choice_ids) > max_rows:
                yield group
                group, num_rows = [], 0
            group.append(index)
            num_rows += len(prompts[index].choice_ids)
        yield group


def _score_group(model: CausalLM, weight_VxD: Tensor, prompts: Sequence[Prompt]) -> list[Scores]:
    device, num_context = weight_VxD.device, len(prompts[0].context_ids)
    choices = [ids for prompt in prompts for ids in prompt.choice_ids]
    counts = [len(prompt.choice_ids) for prompt in prompts]
    question_R = torch.arange(len(prompts), device=device).repeat_interleave(
        torch.tensor(counts, device=device)
    )
    cache = KVCache(model.config, len(prompts), num_context, weight_VxD.dtype, device)
    context_QxT = torch.tensor([prompt.context_ids for prompt in prompts], device=device)
    last_QxD = model.hidden_states(context_QxT, cache=cache)[:, -1]
    first_R = torch.tensor([ids[0] for ids in choices], device=device)
    logp_R = model.logits(last_QxD).log_softmax(dim=-1)[question_R, first_R].double()
    if max(map(len, choices)) > 1:
        logp_R += _score_rest(model, weight_VxD, choices, _spread(model, cache, question_R, choices))
    return np.split(logp_R.cpu().numpy(), np.cumsum(counts)[:-1])


def _score_rest(
    model: CausalLM, weight_VxD: Tensor, choices: Sequence[Sequence[int]], cache: KVCache
) -> Tensor:
    """Log-probability of every choice but for its first token, R."""
    width = max(map(len, choices)) - 1
    ids_RxT = torch.zeros((len(choices), width), dtype=torch.int64)
    targets_RxT = torch.full((len(choices), width), IGNORED)
    for row, ids in enumerate(choices):
        ids_RxT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets_RxT[row, : len(ids) - 1] = torch.tensor(ids[1:])
    h_RxTxD = model.hidden_states(ids_RxT.to(weight_VxD.device), cache=cache)
    logp_RxT = token_log_probs(h_RxTxD, weight_VxD, targets_RxT.to(weight_VxD.device))
    return logp_RxT.double().sum(dim=1)


def _spread(model: CausalLM, cache: KVCache, question_R: Tensor, choices: Sequence[Sequence[int]]) -> KVCache:
    """A copy of each question's keys and values for each of its choices, with room for the longest."""
    keys, values, length = cache.keys_LxBxKxSxH, cache.values_LxBxKxSxH, cache.length
    room = length + max(map(len, choices)) - 1
    spread = KVCache(model.config, len(question_R), room, keys.dtype, keys.device)
    spread.keys_LxBxKxSxH[:, :, :, :length] = keys[:, question_R]
    spread.values_LxBxKxSxH[:, :, :, :length] = values[:, question_R]
    spread.advance(length)
    return spread
