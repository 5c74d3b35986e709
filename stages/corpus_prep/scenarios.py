"""Scenarios for the agent: phrasings that training sees with new arguments, and phrasings that it never sees.

Their arguments are drawn first and then kept out of every training conversation, also out of plain questions:
what a scenario measures is then never what was learned by heart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.corpus_prep.entries import Entry
from stages.corpus_prep.phrasings import SMALL_TALK, WHAT_DOES_IT_DO
from stages.corpus_prep.sampling import hashed_id
from stages.corpus_prep.tool_conversations import ToolTask, ToolTaskMaker

PHRASINGS = ("seen", "unseen")
FAMILIES = ("calculator", "lookup", "search", "multi_step", "chat")
MULTI_STEP_KINDS = ("then_calculate", "lookup_and_calculate", "search_then_lookup")


@dataclass(frozen=True)
class Scenarios:
    """Rows of the part, and the arguments and titles that training must not use."""

    rows: list[dict[str, Any]]
    reserved: frozenset[str]


def make_scenarios(entries: Sequence[Entry], number: int, seed: int) -> Scenarios:
    """`number` scenarios per phrasing, spread evenly over the families that the corpus allows."""
    reserved: set[str] = set()
    rows: list[dict[str, Any]] = []
    for phrasing in PHRASINGS:
        maker = ToolTaskMaker(entries, f"{seed}/scenarios/{phrasing}", phrasing, reserved)
        for index in range(number):
            family, turn = FAMILIES[index % len(FAMILIES)], index // len(FAMILIES)
            if family == "chat":
                rows.append(_chat(maker.rng, turn, phrasing, entries, reserved))
            else:
                rows.append(_scenario(_task(maker, family, turn), phrasing, reserved))
    return Scenarios(_numbered(rows), frozenset(reserved))


def _task(maker: ToolTaskMaker, family: str, turn: int) -> ToolTask:
    """A task of the family; a calculation where the corpus has nothing to look up or to search."""
    kinds = (
        [kind for kind in MULTI_STEP_KINDS if kind in maker.makers] if family == "multi_step" else [family]
    )
    make = maker.makers.get(kinds[turn % len(kinds)], maker.calculator)
    return make() or maker.calculator()


def _scenario(task: ToolTask, phrasing: str, reserved: set[str]) -> dict[str, Any]:
    reserved |= task.uses()
    return {
        "family": task.family,
        "phrasing": phrasing,
        "prompt": task.prompt,
        "expected_calls": json.dumps(list(task.calls), ensure_ascii=False),
        "expected_answer": task.expected,
    }


def _chat(
    rng: random.Random, turn: int, phrasing: str, entries: Sequence[Entry], reserved: set[str]
) -> dict[str, Any]:
    """No tool is wanted: small talk, and every second time a plain question about a name."""
    code = [entry for entry in entries if entry.is_code and entry.title not in reserved]
    if turn % 2 == 0 or not code:
        requests, _ = SMALL_TALK[(turn // 2 if code else turn) % len(SMALL_TALK)]
        prompt = requests[0] if phrasing == "seen" else requests[-1]
    else:
        entry = rng.choice(code)
        reserved.add(entry.title)
        prompt = rng.choice(WHAT_DOES_IT_DO.of(phrasing)).format(title=entry.title)
    return {
        "family": "chat",
        "phrasing": phrasing,
        "prompt": prompt,
        "expected_calls": "[]",
        "expected_answer": "",
    }


def _numbered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"scenario_id": f"{number:03d}-{hashed_id(row['prompt'])[:8]}", **row}
        for number, row in enumerate(rows)
    ]
