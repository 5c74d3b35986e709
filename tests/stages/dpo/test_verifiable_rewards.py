"""Turns and rewards: what is put in is what rendering gives, and every kind of answer gets what it earns."""

from __future__ import annotations

from typing import Any

import pytest

from stages.dpo.arithmetic_tasks import Task
from stages.dpo.spec import DpoConfig
from stages.dpo.turns import Calculator, Turn, read_turn, read_turns
from stages.dpo.verifiable_rewards import judge, last_number
from stages.whitebox.chat_format import render
from stages.whitebox.rollout import Rollout
from stages.whitebox.tokenizer import Tokenizer

TASK = Task("What is 12*(3+4)?", ("12*(3+4)",), "84", "seen")
THEN = Task("What is 2+3? Then add 4 to the result.", ("2+3", "5+4"), "9", "seen")
USER = {"role": "user", "content": TASK.prompt}


@pytest.fixture(scope="module")
def tokenizer(base_model: Any) -> Tokenizer:
    return base_model.tokenizer  # type: ignore[no-any-return]


def call(expression: Any, name: str = "calculator", **more: Any) -> Turn:
    return Turn("", {"name": name, "arguments": {"expression": expression, **more}}, True)


def said(text: str) -> Turn:
    return Turn(text, None, True)


def test_a_written_conversation_is_the_rendered_one(tokenizer: Tokenizer) -> None:
    """Model's tokens and what the calculator puts in, side by side, are the ids that training would see."""
    called = {"role": "assistant", "content": "", "tool_calls": [dict(call("12*(3+4)").call or {})]}
    whole = render(
        [USER, called, {"role": "tool", "content": "84"}, {"role": "assistant", "content": "It is 84."}],
        tokenizer,
    )
    start = len(render([USER], tokenizer, add_generation_prompt=True).ids)
    written = whole.ids[start:-1]
    first = written[: written.index(tokenizer.special_id("<|im_end|>")) + 1]
    calculator = Calculator(tokenizer, max_calls=1)
    put_in = calculator(7, first)
    assert written[: len(first) + len(put_in)] == [*first, *put_in]
    assert whole.is_target[start:-1] == [True] * len(first) + [False] * len(put_in) + [True] * (
        len(written) - len(first) - len(put_in)
    )
    assert calculator(7, written) == []  # an answer ends the row
    assert calculator(7, [*first, *put_in, *first]) == []  # and so does a second call where one is allowed
    assert calculator(8, first) == put_in  # another row has a count of its own
    rollout = Rollout(written, whole.is_target[start:-1])
    turns = read_turns(rollout, tokenizer)
    assert [turn.expression for turn in turns] == ["12*(3+4)", None]
    assert turns[1] == said("It is 84.")
    assert judge(TASK, turns).reward(DpoConfig()) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("call_text", "is_clean", "result"),
    [
        ('{"name": "calculator", "arguments": {"expression": "2+2"}}', True, "4"),
        (
            '{"name": "calculator", "arguments": {"expression": "2+"}}',
            True,
            "error: no arithmetic expression",
        ),
        (
            '{"name": "calculator", "arguments": {"expression": 4}}',
            True,
            "error: calculator takes expression",
        ),
        ('{"name": "search", "arguments": {}}', True, "error: there is no tool 'search'; tools: calculator"),
        ('{"name": "calculator", "arguments": ', False, None),
    ],
)
def test_calls_are_answered_or_end_the_row(
    tokenizer: Tokenizer, call_text: str, is_clean: bool, result: str | None
) -> None:
    markers = [tokenizer.special_id(name) for name in ("<tool_call>", "</tool_call>", "<|im_end|>")]
    ids = [markers[0], *tokenizer.encode(call_text), *markers[1:]]
    turn = read_turn(ids, tokenizer)
    assert turn.is_clean == is_clean
    put_in = Calculator(tokenizer, 1)(0, ids)
    assert bool(put_in) == is_clean
    if result is not None:
        assert turn.result == result
        assert result in tokenizer.decode(put_in)


def test_what_is_not_clean(tokenizer: Tokenizer) -> None:
    end, opening = tokenizer.special_id("<|im_end|>"), tokenizer.special_id("<tool_call>")
    words = tokenizer.encode("It is 84.")
    assert read_turn([*words, end], tokenizer).is_clean
    assert not read_turn(words, tokenizer).is_clean  # its tokens ran out
    assert not read_turn([end], tokenizer).is_clean
    assert not read_turn([*words, tokenizer.eos_id], tokenizer).is_clean
    assert not read_turn([*words, opening, end], tokenizer).is_clean
    assert not read_turn([*words, tokenizer.special_id("<tool_response>"), end], tokenizer).is_clean


@pytest.mark.parametrize(
    ("task", "turns", "answer", "form", "tool"),
    [
        (TASK, [call("12*(3+4)"), said("The answer is 84.")], 1, 1, 1),
        (TASK, [call("12 * (3+4)"), said("12*(3+4) makes 84")], 1, 1, 1),
        (TASK, [said("The answer is 84.")], 1, 1, 0),  # a lucky guess
        (TASK, [call("12*(3+4)"), said("The answer is 48.")], 0, 1, 2 / 3),
        (TASK, [call("12*3+4"), said("The answer is 40.")], 0, 1, 2 / 3),  # valid, and its result is used
        (TASK, [call("12*(3+4)", name="search"), said("84")], 1, 1, 0),
        (TASK, [call("12*(3+4)", unit="m"), said("84")], 1, 1, 0),
        (TASK, [call("12*(3+4)")], 0, 0, 2 / 3),  # no answer any more
        (TASK, [call("12*(3+4)"), call("12*(3+4)"), said("84")], 1, 1, (1 + 1 / 2 + 1) / 3),
        (TASK, [Turn("84", None, False)], 0, 0, 0),  # cut off, or a broken call
        (TASK, [], 0, 0, 0),
        (THEN, [call("2+3"), call("5+4"), said("The answer is 9.")], 1, 1, 1),
        (THEN, [call("2+3"), said("The answer is 5.")], 0, 1, (1 + 1 / 2 + 1) / 3),
    ],
)
def test_what_answers_earn(task: Task, turns: list[Turn], answer: float, form: float, tool: float) -> None:
    found = judge(task, turns)
    assert (found.answer, found.format) == (answer, form)
    assert found.tool == pytest.approx(tool)
    weights = DpoConfig(method="grpo", answer_reward=2.0, format_reward=0.25, tool_reward=1.0)
    assert found.reward(weights) == pytest.approx(2 * answer + 0.25 * form + tool)


def test_a_form_can_be_asked_for() -> None:
    form = r"The answer is -?[0-9.]+\."
    turns = [call("12*(3+4)")]
    assert judge(TASK, [*turns, said("The answer is 84.")], form).format == 1
    found = judge(TASK, [*turns, said("It is 84.")], form)
    assert (found.answer, found.format) == (1, 0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 84.", "84"),
        ("-2814", "-2814"),
        ("1,234 of 5,678.", "5678"),
        ("33.80 metres", "33.8"),
        ("0.333333", "0.333333"),
        ("1e+20", "1e+20"),
        ("007", "7"),
        ("That is 12-2.", "2"),
        ("(3,4)", "4"),
        ("9" * 5000, "9" * 5000),
        ("none", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number
