"""Tools answer in the wording of the training conversations; what cannot run is told, never raised."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.agent_smoke.toolbox import (
    CALCULATOR,
    LOOKUP,
    SEARCH,
    Tool,
    ToolBox,
    open_toolbox,
    searcher,
)
from stages.whitebox.arithmetic_requests import random_expression
from stages.whitebox.tool_results import calculate, calculator_result


@dataclass
class FakeHit:
    title: str
    text: str


class FakeIndex:
    """Answers every query with the same hits."""

    def __init__(self, hits: list[FakeHit]) -> None:
        self.hits = hits
        self.queries: list[str] = []

    def search(self, query: str, k: int) -> list[FakeHit]:
        self.queries.append(query)
        return self.hits[:k]


@pytest.fixture
def toolbox(documents: Path) -> ToolBox:
    return open_toolbox(documents, None)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_tools_answer_as_in_training(toolbox: ToolBox) -> None:
    assert toolbox.run(call("calculator", expression="12*(3+4)")) == "84"
    assert toolbox.run(call("lookup", symbol="collections.Counter")) == "Counter — Count hashable items."


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1/0", "error: division by zero"),
        ("9**9**9", "error: powers are limited to exponents of 64"),
        ("__import__('os').getcwd()", "error: only numbers, + - * / // % ** and parentheses are allowed"),
        ("1e300*1e300", "error: result is too large"),
    ],
)
def test_the_calculator_tells_why_it_has_no_result(expression: str, result: str) -> None:
    assert calculator_result(expression) == result


def test_search_answers_with_the_best_hit() -> None:
    index = FakeIndex([FakeHit("os.path.join", "Join path names. More."), FakeHit("b", "B.")])
    assert searcher(index)("paths") == "os.path.join: Join path names."  # type: ignore[arg-type]
    assert index.queries == ["paths"]


def test_search_without_a_hit_says_so() -> None:
    assert searcher(FakeIndex([]))("paths") == "error: nothing found"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (call("delete", path="/"), "error: there is no tool 'delete'; tools: calculator, lookup"),
        (call("calculator"), "error: calculator takes expression"),
        (call("calculator", expression="1", unit="m"), "error: calculator takes expression"),
        (call("calculator", expression=3), "error: expression must be a text"),
        (call("lookup", symbol=""), "error: symbol must be a text"),
        ({"name": "calculator"}, "error: calculator takes expression"),
        ({}, "error: there is no tool None; tools: calculator, lookup"),
    ],
)
def test_calls_that_fit_no_tool_become_results(toolbox: ToolBox, wrong: dict[str, Any], says: str) -> None:
    assert toolbox.run(wrong) == says


def test_arguments_reach_the_function_in_the_signatures_order() -> None:
    from stages.whitebox.argument_forms import JsonText
    from stages.whitebox.tool_grammar import Argument, ToolSignature

    signature = ToolSignature("join", (Argument("first", JsonText()), Argument("second", JsonText())))
    function: Callable[..., str] = lambda first, second: first + second  # noqa: E731
    toolbox = ToolBox({"join": Tool(signature, function)})
    assert toolbox.run(call("join", second="b", first="a")) == "ab"


def test_the_grammar_knows_the_tools_at_hand_and_no_others(toolbox: ToolBox) -> None:
    assert toolbox.grammar.accepts(b'{"name": "lookup", "arguments": {"symbol": "os.path"}}')
    assert not toolbox.grammar.accepts(b'{"name": "search", "arguments": {"query": "os"}}')
    assert [signature.name for signature in toolbox.grammar.tools] == ["calculator", "lookup"]


def test_every_calculation_of_the_training_conversations_fits_the_grammar(toolbox: ToolBox) -> None:
    rng = random.Random(5)
    for _ in range(300):
        expression = random_expression(rng)
        follow_up = f"{calculate(expression)}{rng.choice('+-*')}{rng.randint(2, 99)}"
        for text in (expression, *([follow_up] if "e" not in follow_up else [])):
            written = json.dumps(call("calculator", expression=text), ensure_ascii=False)
            assert toolbox.grammar.accepts(written.encode()), written


def test_signatures_are_those_that_the_model_was_trained_on() -> None:
    names = {
        tool.name: [argument.name for argument in tool.arguments] for tool in (CALCULATOR, LOOKUP, SEARCH)
    }
    assert names == {"calculator": ["expression"], "lookup": ["symbol"], "search": ["query"]}
