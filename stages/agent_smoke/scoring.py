"""Was it right? Format, tool, arguments and answer are judged apart, because they fail apart.

A call that parses says nothing about competence (format is learned first), so `valid`, `tool_right`,
`exact_calls` and `success` are four numbers and never one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stages.agent_smoke.agent_loop import Episode
from stages.whitebox.intervals import wilson_interval
from stages.whitebox.tool_results import ERROR, title_of_search

PHRASINGS = ("seen", "unseen")


@dataclass(frozen=True)
class Scenario:
    """A request with the calls and the answer that are expected; "" expects no particular answer."""

    scenario_id: str
    family: str
    phrasing: str
    prompt: str
    expected_calls: tuple[dict[str, Any], ...]
    expected_answer: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Scenario:
        """Read a row of the scenarios part. Raises ValueError when `expected_calls` is no JSON list."""
        try:
            calls = json.loads(row["expected_calls"] or "[]")
        except ValueError as error:
            raise ValueError(f"scenario {row['scenario_id']}: expected_calls is no JSON ({error})") from error
        if not isinstance(calls, list):
            raise ValueError(f"scenario {row['scenario_id']}: expected_calls must be a JSON list")
        return cls(**{**row, "expected_calls": tuple(calls)})


@dataclass(frozen=True)
class Verdict:
    """How one episode compares with what its scenario expects."""

    scenario: Scenario
    episode: Episode
    tool_right: bool
    exact_calls: bool
    answer_right: bool
    success: bool

    def row(self) -> dict[str, Any]:
        """The row of the results part."""
        return {
            "scenario_id": self.scenario.scenario_id,
            "family": self.scenario.family,
            "phrasing": self.scenario.phrasing,
            "num_calls": len(self.episode.calls),
            "valid_calls": self.episode.num_valid_calls,
            "tool_right": self.tool_right,
            "exact_calls": self.exact_calls,
            "answer_right": self.answer_right,
            "success": self.success,
            "num_steps": len(self.episode.steps),
            "status": self.episode.status,
            "final_answer": self.episode.answer,
        }


def judge(scenario: Scenario, episode: Episode) -> Verdict:
    """Compare.

    tool_right: the same tools in the same order; exact_calls: with the same arguments, too (`calls_wanted`).
    success: the answer is right; where none in particular is expected, the calls must be exact.
    """
    expected = calls_wanted(scenario, episode)
    made = [call["name"] if call else None for call in episode.calls]
    tool_right = made == [call["name"] for call in expected]
    exact = tool_right and [call["arguments"] for call in episode.calls if call] == [
        call["arguments"] for call in expected
    ]
    answered = episode.status == "answered"
    answer_right = answered and contains(episode.answer, scenario.expected_answer)
    success = answer_right and (exact or bool(scenario.expected_answer))
    return Verdict(scenario, episode, tool_right, exact, answer_right, success)


def calls_wanted(scenario: Scenario, episode: Episode) -> list[dict[str, Any]]:
    """The calls that do what the request says, given what the tools answered in this episode.

    "Search for X and look up the best hit" wants a look-up of the hit that came back. Where the search finds
    another document than the scenario has in mind, that is the search's mistake: the calls can still be
    right, and the answer is not.
    """
    results = [step.result for step in episode.steps if step.call is not None]
    wanted = [dict(call) for call in scenario.expected_calls]
    for number, (earlier, call) in enumerate(pairwise(wanted)):
        names_a_hit = earlier["name"] == "search" and call["name"] == "lookup"
        if names_a_hit and call["arguments"]["symbol"] not in scenario.prompt and number < len(results):
            found = results[number]
            call["arguments"] = {"symbol": "" if found.startswith(ERROR) else title_of_search(found)}
    return wanted


def contains(answer: str, expected: str) -> bool:
    """Whether `expected` stands in `answer`, whatever the case and spacing.

    A number must stand there whole: 84 is neither in 184 nor in 84.5, but it is in "It is 84."
    """
    haystack, needle = _squeeze(answer), _squeeze(expected)
    before = r"(?<![\d.])(?<!-)" if needle[:1].isdigit() else ""
    after = r"(?!\d|\.\d)" if needle[-1:].isdigit() else ""
    return re.search(before + re.escape(needle) + after, haystack) is not None


def _squeeze(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Share:
    """`hits` of `total` with the bounds of its 95 % interval (Wilson 1927)."""

    hits: int
    total: int

    @property
    def fraction(self) -> float:
        """hits / total; 0 for none of none."""
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound; the whole range where nothing was counted."""
        return wilson_interval(self.hits, self.total) if self.total else (0.0, 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        bounds = f"[{100 * low:.0f}, {100 * high:.0f}]"
        return f"{100 * self.fraction:.0f} % {bounds} of {self.total}" if self.total else "-"


MEASURES = {
    "tool_right": "tool_right_fraction",
    "exact_calls": "exact_call_fraction",
    "success": "success_fraction",
}
"""What is counted per scenario -> the name of its share among the stage's metrics."""


def share(verdicts: Iterable[Verdict], measure: str) -> Share:
    """Share of verdicts with this measure; tools and calls count only where calls are expected."""
    counted = [v for v in verdicts if measure == "success" or v.scenario.expected_calls]
    return Share(sum(getattr(verdict, measure) for verdict in counted), len(counted))


def valid_call_share(verdicts: Sequence[Verdict]) -> Share:
    """Share of all calls that were made which parse and fit their tool."""
    return Share(
        sum(verdict.episode.num_valid_calls for verdict in verdicts),
        sum(len(verdict.episode.calls) for verdict in verdicts),
    )


def with_phrasing(verdicts: Iterable[Verdict], phrasing: str) -> list[Verdict]:
    """The verdicts on scenarios with this phrasing."""
    return [verdict for verdict in verdicts if verdict.scenario.phrasing == phrasing]


def headline(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The stage's metrics: each fraction with the bounds of its interval; shares of nothing are left out."""
    shares = {"valid_call_fraction": valid_call_share(verdicts)}
    for phrasing in PHRASINGS:
        chosen = with_phrasing(verdicts, phrasing)
        shares |= {f"{name}_{phrasing}": share(chosen, measure) for measure, name in MEASURES.items()}
    metrics: dict[str, float] = {"num_scenarios": float(len(verdicts))}
    for name, counted in shares.items():
        if counted.total:
            low, high = counted.interval
            metrics |= {name: counted.fraction, f"{name}_low": low, f"{name}_high": high}
    return metrics
