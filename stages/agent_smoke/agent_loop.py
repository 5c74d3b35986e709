"""The agent: the model speaks, a tool answers, and so on until there is an answer or a reason to stop.

Reason and act in turns: Yao et al. 2022, arXiv:2210.03629, with the tool calls as JSON instead of prose.
Every way out has a name:

    answered   the model wrote text and no call: that is the final answer
    budget     steps or tokens ran out before an answer
    loop       the model repeated a call that it had made: the result would be the same again
    invalid    the last turn was nothing that can be used: a malformed call, or no text at all
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stages.agent_smoke.assistant import Message, Turn
from stages.agent_smoke.toolbox import ToolBox
from stages.whitebox.chat_format import spoken_text
from stages.whitebox.tool_results import ERROR

STATUSES = ("answered", "budget", "loop", "invalid")

TakeTurn = Callable[[Sequence[Message]], Turn]


@dataclass(frozen=True)
class Step:
    """One turn of the model and what came back. call: as the model wrote it; result: "" when no tool ran.

    status: "called" when a tool ran, "refused" when the call fits no tool, else how the episode ended.
    """

    text: str
    call: dict[str, Any] | None
    result: str
    num_tokens: int
    status: str
    valid: bool = True
    reasoning: str = ""

    @property
    def spoken(self) -> str:
        """Reasoning and text, as the model wrote them."""
        said = {"role": "assistant", "content": self.text, "reasoning_content": self.reasoning}
        return spoken_text(said)


@dataclass
class Episode:
    """What the agent did for one request."""

    prompt: str
    steps: list[Step] = field(default_factory=list)
    status: str = "budget"

    @property
    def calls(self) -> list[dict[str, Any] | None]:
        """The tool calls in order; None for one that is no JSON object with name and arguments."""
        return [step.call for step in self.steps if step.call is not None or not step.valid]

    @property
    def num_valid_calls(self) -> int:
        """Calls that parse and fit their tool."""
        return sum(step.call is not None and step.valid for step in self.steps)

    @property
    def answer(self) -> str:
        """The final answer; "" where there is none."""
        return self.steps[-1].text if self.status == "answered" else ""

    def messages(self) -> list[Message]:
        """The steps as messages, to go on with the conversation."""
        return [message for step in self.steps for message in _as_messages(step)]


def run_episode(
    messages: Sequence[Message],
    take_turn: TakeTurn,
    toolbox: ToolBox,
    max_steps: int,
    on_step: Callable[[Step], None] | None = None,
) -> Episode:
    """Answer the last of `messages` in at most `max_steps` turns; `on_step` sees each step as it ends."""
    history = list(messages)
    episode = Episode(prompt=str(messages[-1]["content"]))
    made: set[str] = set()
    while len(episode.steps) < max_steps:
        turn = take_turn(history)
        step = replace(_step(turn, toolbox, made), reasoning=turn.reasoning)
        episode.steps.append(step)
        if on_step is not None:
            on_step(step)
        if step.status in STATUSES:
            episode.status = step.status
            return episode
        history += _as_messages(step)
    episode.status = "budget" if episode.steps[-1].valid else "invalid"
    return episode


def _step(turn: Turn, toolbox: ToolBox, made: set[str]) -> Step:
    """Judge one turn and run its tool call; `made` collects the calls of this episode."""
    if turn.malformed:
        return Step(turn.text, None, ERROR + "the call is no JSON", turn.num_tokens, "refused", valid=False)
    if turn.call is None:
        ended = "answered" if turn.finished and turn.text else "invalid" if turn.finished else "budget"
        return Step(turn.text, None, "", turn.num_tokens, ended)
    identity = json.dumps(turn.call, sort_keys=True, ensure_ascii=False)
    valid = toolbox.problem(turn.call) is None
    if identity in made:
        return Step(turn.text, turn.call, "", turn.num_tokens, "loop", valid)
    made.add(identity)
    status = "called" if valid else "refused"
    return Step(turn.text, turn.call, toolbox.run(turn.call), turn.num_tokens, status, valid)


def _as_messages(step: Step) -> list[Message]:
    """The step as the model sees it in its next turn, in the format of its training."""
    calls = [step.call] if step.call is not None else []
    spoken: Message = {"role": "assistant", "content": step.text, "tool_calls": calls}
    if step.reasoning:
        spoken["reasoning_content"] = step.reasoning
    return [spoken, {"role": "tool", "content": step.result}] if step.result else [spoken]
