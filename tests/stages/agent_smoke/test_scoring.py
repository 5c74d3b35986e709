"""What counts as right, and the shares that follow from it."""

from __future__ import annotations

from typing import Any

import pytest

from stages.agent_smoke.agent_loop import Episode, Step
from stages.agent_smoke.findings import check_gate, describe
from stages.agent_smoke.scoring import Scenario, Verdict, contains, headline, judge, share
from stages.runtime.errors import GlassworksError

SUM = {"name": "calculator", "arguments": {"expression": "12*7"}}
OTHER_SUM = {"name": "calculator", "arguments": {"expression": "7*12"}}
LOOKUP = {"name": "lookup", "arguments": {"symbol": "os"}}


def scenario(*calls: dict[str, Any], answer: str = "84", phrasing: str = "seen") -> Scenario:
    return Scenario("s1", "calculator", phrasing, "What is 12*7?", calls, answer)


def episode(*calls: dict[str, Any], answer: str = "It is 84.", status: str = "answered") -> Episode:
    steps = [Step("", call, "84", 9, "called") for call in calls]
    return Episode("What is 12*7?", [*steps, Step(answer, None, "", 4, status)], status)


def flags(verdict: Verdict) -> tuple[bool, bool, bool, bool]:
    return verdict.tool_right, verdict.exact_calls, verdict.answer_right, verdict.success


@pytest.mark.parametrize(
    ("expected", "done", "wanted"),
    [
        (scenario(SUM), episode(SUM), (True, True, True, True)),
        (scenario(SUM), episode(OTHER_SUM), (True, False, True, True)),
        (scenario(SUM), episode(LOOKUP), (False, False, True, True)),
        (scenario(SUM), episode(SUM, answer="It is 85."), (True, True, False, False)),
        (scenario(SUM), episode(SUM, status="budget"), (True, True, False, False)),
        (scenario(SUM), episode(SUM, SUM), (False, False, True, True)),
        (scenario(SUM, answer=""), episode(OTHER_SUM), (True, False, True, False)),
        (scenario(SUM, answer=""), episode(SUM, answer="Anything."), (True, True, True, True)),
        (scenario(answer=""), episode(answer="Hello!"), (True, True, True, True)),
        (scenario(answer=""), episode(SUM, answer="Hello!"), (False, False, True, False)),
        (scenario(SUM, LOOKUP), episode(LOOKUP, SUM), (False, False, True, True)),
    ],
)
def test_verdicts(expected: Scenario, done: Episode, wanted: tuple[bool, ...]) -> None:
    assert flags(judge(expected, done)) == wanted


SEARCH = {"name": "search", "arguments": {"query": "joins two paths"}}
WANTED_HIT = {"name": "lookup", "arguments": {"symbol": "os.path.join"}}
OTHER_HIT = {"name": "lookup", "arguments": {"symbol": "posixpath.join"}}


def searched(result: str, lookup: dict[str, Any], answer: str) -> Episode:
    steps = [Step("", SEARCH, result, 9, "called"), Step("", lookup, "join(a, *p) — Joins.", 9, "called")]
    return Episode("", [*steps, Step(answer, None, "", 4, "answered")], "answered")


@pytest.mark.parametrize(
    ("found", "looked_up", "exact"),
    [
        ("os.path.join: Joins two paths.", WANTED_HIT, True),
        ("posixpath.join: Joins.", OTHER_HIT, True),
        ("posixpath.join: Joins.", WANTED_HIT, False),
        ("os.path.join: Joins two paths.", OTHER_HIT, False),
        ("error: nothing found", WANTED_HIT, False),
    ],
)
def test_looking_up_the_best_hit_is_looking_up_what_was_found(
    found: str, looked_up: dict[str, Any], exact: bool
) -> None:
    prompt = "Search for joins two paths and look up the best hit."
    expected = Scenario("s1", "multi_step", "seen", prompt, (SEARCH, WANTED_HIT), "Joins two")
    verdict = judge(expected, searched(found, looked_up, "Found: something else"))
    assert verdict.exact_calls is exact
    assert not verdict.success  # the answer is judged by what was asked for, whatever the search gave


def test_a_named_symbol_is_expected_whatever_was_found() -> None:
    prompt = "Search for joins two paths and look up os.path.join."
    expected = Scenario("s1", "multi_step", "seen", prompt, (SEARCH, WANTED_HIT), "Joins two")
    assert not judge(expected, searched("posixpath.join: Joins.", OTHER_HIT, "Joins two paths")).exact_calls


@pytest.mark.parametrize(
    ("answer", "expected", "wanted"),
    [
        ("It is 84.", "84", True),
        ("It is 184.", "84", False),
        ("It is 84.5.", "84", False),
        ("It is 840", "84", False),
        ("It is -84.", "84", False),
        ("It is -84.", "-84", True),
        ("12*7=84, of course", "84", True),
        ("0.84", "84", False),
        ("REMOVE  common\nwhitespace", "remove common whitespace", True),
        ("", "84", False),
        ("anything", "", True),
        ("西湖位于杭州。", "杭州", True),
    ],
)
def test_an_answer_contains_what_is_expected_as_a_whole(answer: str, expected: str, wanted: bool) -> None:
    assert contains(answer, expected) is wanted


def test_scenarios_are_read_from_rows() -> None:
    row = {
        "scenario_id": "s1",
        "family": "chat",
        "phrasing": "seen",
        "prompt": "Hi",
        "expected_calls": "",
        "expected_answer": "",
    }
    assert Scenario.from_row(row).expected_calls == ()
    row["expected_calls"] = '[{"name": "lookup", "arguments": {"symbol": "os"}}]'
    assert Scenario.from_row(row).expected_calls == (LOOKUP,)


@pytest.mark.parametrize("broken", ["{", '{"name": 1}'])
def test_expected_calls_that_are_no_list_are_named(broken: str) -> None:
    row = dict.fromkeys(("scenario_id", "family", "phrasing", "prompt", "expected_answer"), "s9")
    with pytest.raises(ValueError, match="scenario s9: expected_calls"):
        Scenario.from_row(row | {"expected_calls": broken})


def test_shares_count_what_they_are_about() -> None:
    seen = [judge(scenario(SUM), episode(SUM)), judge(scenario(answer=""), episode(answer="Hi"))]
    unseen = [judge(scenario(SUM, phrasing="unseen"), episode(OTHER_SUM, answer="No."))]
    metrics = headline([*seen, *unseen])
    assert metrics["exact_call_fraction_seen"] == 1.0
    assert metrics["exact_call_fraction_unseen"] == 0.0
    assert metrics["tool_right_fraction_unseen"] == 1.0
    assert (metrics["success_fraction_seen"], metrics["success_fraction_unseen"]) == (1.0, 0.0)
    assert metrics["valid_call_fraction"] == 1.0
    assert share(seen, "exact_calls").total == 1, "scenarios without calls say nothing about calls"
    # Wilson 1927 for 2 of 2: 2 / (2 + 1.96^2)
    assert metrics["success_fraction_seen_low"] == pytest.approx(0.3424, abs=1e-3)


def test_shares_of_nothing_are_left_out() -> None:
    metrics = headline([judge(scenario(answer=""), episode(answer="Hi"))])
    assert "valid_call_fraction" not in metrics and "success_fraction_unseen" not in metrics


def test_the_gate_names_numbers_and_remedy() -> None:
    verdicts = [judge(scenario(SUM), episode(SUM)), judge(scenario(SUM), episode(SUM, answer="85"))]
    check_gate(verdicts, 0.5)
    with pytest.raises(GlassworksError, match=r"1 of 2 .* right \(50 %\), expected at least 60 %") as raised:
        check_gate(verdicts, 0.6)
    assert "minimum_success_fraction" in raised.value.hint


def test_the_gate_looks_at_seen_phrasings_only() -> None:
    check_gate([judge(scenario(SUM, phrasing="unseen"), episode(SUM, answer="85"))], 1.0)


def test_a_failure_is_told_with_what_was_expected() -> None:
    told = describe(judge(scenario(SUM), episode(OTHER_SUM, answer="It is 85.")))
    assert told.splitlines() == [
        'calculator(expression="7*12") -> 84',
        "It is 85.",
        "expected: calculator(expression=\"12*7\"), an answer with '84'",
    ]
