"""Rewards that a program gives, so that no judge can be talked round: is the number right, is the form kept,
was the calculator used as it should be.

| part   | share of it                                                                             |
|--------|-----------------------------------------------------------------------------------------|
| answer | 1 where the last turn is an answer whose last number is the right one                   |
| format | 1 where every turn is well formed, the last one is an answer, and it has the asked form |
| tool   | a third each: every call is a call of the calculator and there is one; the share of     |
|        | expressions that are the expected ones; the answer ends with the calculator's result    |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stages.dpo.arithmetic_tasks import Task
from stages.dpo.spec import DpoConfig
from stages.dpo.turns import Turn
from stages.whitebox.tool_results import format_number

NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
"""The minus of "12-2" is no sign."""
LONGEST_WHOLE_NUMBER = 4_000
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Verdict:
    """What a program finds out about an answer; every part is between 0 and 1."""

    answer: float
    format: float
    tool: float

    @property
    def is_right(self) -> bool:
        """The right number, told to the user."""
        return self.answer == 1.0

    def reward(self, config: DpoConfig) -> float:
        """The weighted sum."""
        parts = (
            config.answer_reward * self.answer,
            config.format_reward * self.format,
            config.tool_reward * self.tool,
        )
        return sum(parts)


def judge(task: Task, turns: Sequence[Turn], form: str = "") -> Verdict:
    """Compare what was written with what the task wants.

    Args:
        form: a regular expression that an answer must match from end to end; "" for any.
    """
    answered = bool(turns) and turns[-1].is_answer
    said = last_number(turns[-1].text) if answered else None
    kept = answered and all(turn.is_clean for turn in turns)
    has_form = answered and (not form or re.fullmatch(form, turns[-1].text) is not None)
    return Verdict(
        answer=float(said is not None and said == last_number(task.answer)),
        format=float(kept and has_form),
        tool=_tool_use(task, turns, said),
    )


def _tool_use(task: Task, turns: Sequence[Turn], said: str | None) -> float:
    calls = [turn for turn in turns if not turn.is_answer]
    if not calls:
        return 0.0
    is_valid = all(turn.is_clean and turn.expression is not None for turn in calls)
    asked = [(turn.expression or "").replace(" ", "") for turn in calls]
    num_right = sum(found == wanted for found, wanted in zip(asked, task.expressions, strict=False))
    right_share = num_right / max(len(asked), len(task.expressions))
    is_used = said is not None and calls[-1].expression is not None and said == last_number(calls[-1].result)
    return (is_valid + right_share + is_used) / 3


def last_number(text: str) -> str | None:
    """The last number of a text as the calculator would write it; None where there is none."""
    found = NUMBER.findall(THOUSANDS.sub("", text))
    if not found:
        return None
    if not re.fullmatch(r"-?\d+", found[-1]):
        return format_number(float(found[-1]))
    # Python reads no whole numbers of over 4,300 digits; the calculator writes none.
    return str(int(found[-1])) if len(found[-1]) <= LONGEST_WHOLE_NUMBER else found[-1]
