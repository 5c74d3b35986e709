"""A rollout as the turns of a conversation: what the assistant wrote, and what the calculator answered.

While a rollout is written, a turn that ends with a call is answered with the calculator's result in the chat
format, and the assistant has the next turn. The ids are those that rendering the whole conversation gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.whitebox.chat_format import IM_END, TOOL_CALL, TOOL_CALL_END, parse_completion, render
from stages.whitebox.rollout import Rollout
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.tool_results import ERROR, calculator_result

CALL_MARKERS = (TOOL_CALL, TOOL_CALL_END)


@dataclass(frozen=True)
class Turn:
    """What the assistant wrote in one go.

    call: as it was written; None where there is none, or where it is no {"name", "arguments"}.
    is_clean: closed by <|im_end|>, with at most one call, which parses, and no other control token.
    """

    text: str
    call: Mapping[str, Any] | None
    is_clean: bool

    @property
    def is_answer(self) -> bool:
        """Text and no call."""
        return self.is_clean and self.call is None

    @property
    def expression(self) -> str | None:
        """What the calculator is asked, None where the call is none of its calls."""
        arguments = self.call["arguments"] if self.call and self.call["name"] == "calculator" else {}
        value = arguments.get("expression")
        return value if len(arguments) == 1 and isinstance(value, str) and value else None

    @property
    def result(self) -> str:
        """What the tool says to the call."""
        if self.expression is not None:
            return calculator_result(self.expression)
        name = (self.call or {}).get("name")
        if name != "calculator":
            return f"{ERROR}there is no tool {name!r}; tools: calculator"
        return f"{ERROR}calculator takes expression"


def read_turn(ids: Sequence[int], tokenizer: Tokenizer) -> Turn:
    """The turn that `ids` spell, its stop token included."""
    message = parse_completion(ids, tokenizer)
    calls, content = message["tool_calls"], message["content"].strip()
    closing = tokenizer.special_id(IM_END)
    control = [token for token in ids[:-1] if tokenizer.is_special(token)]
    opens_one_call = control == [tokenizer.special_id(marker) for marker in CALL_MARKERS]
    is_clean = bool(ids) and ids[-1] == closing
    is_clean = is_clean and (len(calls) == 1 if opens_one_call else not control and bool(content))
    return Turn(content, calls[0] if calls else None, is_clean)


def read_turns(rollout: Rollout, tokenizer: Tokenizer) -> list[Turn]:
    """The assistant's turns; what was put in stands between them."""
    turns: list[list[int]] = [[]]
    for token, is_sampled in zip(rollout.ids, rollout.is_sampled, strict=True):
        if is_sampled:
            turns[-1].append(token)
        elif turns[-1]:
            turns.append([])
    return [read_turn(ids, tokenizer) for ids in turns if ids]


class Calculator:
    """Answers calls in the middle of a rollout: at most `max_calls` of them, and none after a broken turn."""

    def __init__(self, tokenizer: Tokenizer, max_calls: int) -> None:
        self.tokenizer, self.max_calls = tokenizer, max_calls
        self.newline = tokenizer.encode("\n")
        self._read: dict[int, tuple[int, int]] = {}  # row -> tokens that were read, calls that were answered

    def __call__(self, row: int, ids: list[int]) -> list[int]:
        """What is put in behind `ids` of this row; nothing where it ends."""
        start, num_calls = self._read.get(row, (0, 0))
        turn = read_turn(ids[start:], self.tokenizer)
        if turn.call is None or not turn.is_clean or num_calls == self.max_calls:
            return []
        told = render([{"role": "tool", "content": turn.result}], self.tokenizer, add_generation_prompt=True)
        put_in = [*self.newline, *told.ids[1:]]  # without its BOS
        self._read[row] = (len(ids) + len(put_in), num_calls + 1)
        return put_in
