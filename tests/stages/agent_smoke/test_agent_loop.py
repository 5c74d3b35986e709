"""Every way through the loop, with a model that says what the test tells it to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.agent_smoke.agent_loop import Episode, run_episode
from stages.agent_smoke.assistant import Message, Turn
from stages.agent_smoke.toolbox import CALCULATOR, Tool, ToolBox
from stages.whitebox.tool_results import calculator_result

TOOLBOX = ToolBox({"calculator": Tool(CALCULATOR, calculator_result)})


class Script:
    """Plays turns in order and keeps what it was shown."""

    def __init__(self, *turns: Turn) -> None:
        self.turns = list(turns)
        self.seen: list[list[Message]] = []

    def __call__(self, messages: Sequence[Message]) -> Turn:
        self.seen.append([dict(message) for message in messages])
        return self.turns.pop(0)


def calculate(expression: str) -> Turn:
    return Turn("", {"name": "calculator", "arguments": {"expression": expression}}, num_tokens=9)


def episode_of(script: Script, max_steps: int = 4) -> Episode:
    return run_episode([{"role": "user", "content": "What is 2+3?"}], script, TOOLBOX, max_steps)


def test_a_call_is_run_and_its_result_shown_before_the_answer() -> None:
    script = Script(calculate("2+3"), Turn("It is 5.", num_tokens=5))
    episode = episode_of(script)
    assert (episode.status, episode.answer, len(episode.steps)) == ("answered", "It is 5.", 2)
    call = {"name": "calculator", "arguments": {"expression": "2+3"}}
    assert script.seen[1] == [
        {"role": "user", "content": "What is 2+3?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
    ]


def test_several_hops() -> None:
    script = Script(calculate("2+3"), calculate("5*4"), Turn("20"))
    episode = episode_of(script)
    assert [step.result for step in episode.steps] == ["5", "20", ""]
    assert episode.num_valid_calls == 2


def test_an_error_is_an_observation_and_the_model_may_go_on() -> None:
    episode = episode_of(Script(calculate("1/0"), calculate("1/1"), Turn("It is 1.")))
    assert episode.steps[0].result == "error: division by zero"
    assert episode.status == "answered"


def test_the_same_call_twice_is_a_loop_and_is_not_run_again() -> None:
    episode = episode_of(Script(calculate("2+3"), calculate("2+3")))
    assert (episode.status, episode.answer, episode.steps[1].result) == ("loop", "", "")


def test_steps_run_out() -> None:
    episode = episode_of(Script(*(calculate(f"{n}+1") for n in range(9))), max_steps=3)
    assert (episode.status, len(episode.steps)) == ("budget", 3)


def test_tokens_run_out_in_the_middle_of_an_answer() -> None:
    assert episode_of(Script(Turn("It is", finished=False))).status == "budget"
    assert episode_of(Script(Turn("", finished=False))).status == "budget"


def test_no_text_and_no_call_is_invalid() -> None:
    assert episode_of(Script(Turn(""))).status == "invalid"


def test_an_unknown_tool_is_refused_with_a_reason_that_the_model_sees() -> None:
    script = Script(Turn("", {"name": "rm", "arguments": {}}), Turn("Sorry."))
    episode = episode_of(script)
    assert script.seen[1][-1] == {
        "role": "tool",
        "content": "error: there is no tool 'rm'; tools: calculator",
    }
    assert (episode.status, episode.num_valid_calls, len(episode.calls)) == ("answered", 0, 1)


def test_a_malformed_call_is_an_observation_and_counts_as_an_invalid_call() -> None:
    script = Script(Turn('{"name": "calc', malformed=True), Turn("Sorry."))
    episode = episode_of(script)
    assert script.seen[1][-1]["content"] == "error: the call is no JSON"
    assert (episode.calls, episode.num_valid_calls) == ([None], 0)


def test_nothing_but_malformed_calls_is_invalid() -> None:
    episode = episode_of(Script(*[Turn("{", malformed=True)] * 3), max_steps=3)
    assert episode.status == "invalid"


def test_steps_are_shown_as_they_end() -> None:
    shown: list[Any] = []
    run_episode(
        [{"role": "user", "content": "2+3?"}],
        Script(calculate("2+3"), Turn("5")),
        TOOLBOX,
        3,
        on_step=shown.append,
    )
    assert [step.status for step in shown] == ["called", "answered"]


def test_an_episode_gives_the_messages_to_go_on_with() -> None:
    episode = episode_of(Script(calculate("2+3"), Turn("It is 5.")))
    assert [message["role"] for message in episode.messages()] == ["assistant", "tool", "assistant"]
    assert episode.messages()[-1] == {"role": "assistant", "content": "It is 5.", "tool_calls": []}


def test_reasoning_is_no_answer_but_stays_in_the_history() -> None:
    thought = Turn("It is 5.", reasoning="A sum.")
    episode = episode_of(Script(calculate("2+3"), thought))
    assert episode.answer == "It is 5."
    assert episode.messages()[-1]["reasoning_content"] == "A sum."
    assert episode.steps[-1].spoken == "<think>\nA sum.\n</think>\n\nIt is 5."
    assert episode_of(Script(Turn("", reasoning="Hm."))).status == "invalid"
