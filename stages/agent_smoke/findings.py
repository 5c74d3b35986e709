"""The verdicts as a reader wants them: a table and a chart per family, failures to look at, the gate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stages.agent_smoke.agent_loop import STATUSES, Episode
from stages.agent_smoke.scoring import (
    MEASURES,
    PHRASINGS,
    Verdict,
    share,
    valid_call_share,
    with_phrasing,
)
from stages.runtime.errors import GlassworksError
from stages.runtime.session import StageSession


def show(verdicts: Sequence[Verdict], num_samples: int, session: StageSession) -> None:
    """Emit tables, chart and samples."""
    session.table(
        "agent_families",
        ["family", "phrasing", "tool right", "exact calls", "success"],
        _family_rows(verdicts),
        caption="Scenarios by family: share with its 95 % interval (Wilson), and of how many",
    )
    endings = Counter(verdict.episode.status for verdict in verdicts)
    session.table(
        "agent_endings",
        ["status", "scenarios"],
        [[status, endings[status]] for status in STATUSES],
        caption=f"How the episodes ended; valid calls: {valid_call_share(verdicts)}",
    )
    session.chart(
        "agent_success",
        title="Scenarios answered right",
        x_label="family",
        y_label="fraction",
        series={phrasing: _points(with_phrasing(verdicts, phrasing)) for phrasing in PHRASINGS},
        kind="bar",
    )
    failed = [verdict for verdict in verdicts if not verdict.success][:num_samples]
    passed = [verdict for verdict in verdicts if verdict.success][: num_samples // 2]
    for verdict in [*failed, *passed]:
        session.sample(verdict.scenario.prompt, describe(verdict), kind="agent")


def check_gate(verdicts: Sequence[Verdict], minimum: float) -> None:
    """Raise GlassworksError when too few scenarios with seen phrasings succeed."""
    seen = share(with_phrasing(verdicts, "seen"), "success")
    if seen.total and seen.fraction < minimum:
        raise GlassworksError(
            f"the agent answered {seen.hits} of {seen.total} scenarios with seen phrasings right "
            f"({100 * seen.fraction:.0f} %), expected at least {100 * minimum:.0f} %",
            hint="read the failing samples above; train longer (`glassworks build --set sft.epochs=...`) or "
            "lower [agent_smoke] minimum_success_fraction (0 only reports)",
        )


def _families(verdicts: Sequence[Verdict]) -> list[str]:
    return sorted({verdict.scenario.family for verdict in verdicts})


def _in_family(verdicts: Sequence[Verdict], family: str) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.scenario.family == family]


def _family_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    rows = []
    for family in [*_families(verdicts), "all"]:
        members = verdicts if family == "all" else _in_family(verdicts, family)
        for phrasing in PHRASINGS:
            chosen = with_phrasing(members, phrasing)
            if chosen:
                rows.append([family, phrasing, *(str(share(chosen, measure)) for measure in MEASURES)])
    return rows


def _points(verdicts: Sequence[Verdict]) -> list[list[Any]]:
    counted = {family: share(_in_family(verdicts, family), "success") for family in _families(verdicts)}
    return [[family, fraction.fraction, *fraction.interval] for family, fraction in counted.items()]


def describe(verdict: Verdict) -> str:
    """Calls, results and answer of an episode, next to what was expected if it failed."""
    lines = [*_steps_told(verdict.episode)]
    if not verdict.success:
        calls = [call_text(call) for call in verdict.scenario.expected_calls] or ["no call"]
        wanted = (
            f", an answer with {verdict.scenario.expected_answer!r}"
            if verdict.scenario.expected_answer
            else ""
        )
        lines.append(f"expected: {', '.join(calls)}{wanted}")
    return "\n".join(lines)


def _steps_told(episode: Episode) -> list[str]:
    lines = []
    for step in episode.steps:
        if step.call is not None:
            lines.append(f"{call_text(step.call)} -> {step.result or step.status}")
        if step.text:
            lines.append(step.text if step.status == "answered" else f"{step.text} ({step.status})")
    return lines or [f"nothing ({episode.status})"]


def call_text(call: dict[str, Any]) -> str:
    """`calculator(expression="2+3")`."""
    arguments = call["arguments"].items()
    return f"{call['name']}({', '.join(f'{n}={json.dumps(v, ensure_ascii=False)}' for n, v in arguments)})"
