"""Agent smoke test, told in order: open, run every scenario, write traces and verdicts, show, and gate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_contracts.agent import AGENT_RESULTS, AGENT_TRACE
from data_contracts.tables import read_rows, write_part
from stages.agent_smoke import findings
from stages.agent_smoke.agent_loop import Episode, run_episode
from stages.agent_smoke.assistant import Assistant, load_assistant
from stages.agent_smoke.scoring import Scenario, Verdict, headline, judge
from stages.agent_smoke.spec import AgentSmokeConfig
from stages.agent_smoke.toolbox import ToolBox, open_toolbox
from stages.runtime.errors import StopRequested, UserError
from stages.runtime.session import StageSession
from stages.whitebox.device import fix_threads


def run(
    config: AgentSmokeConfig,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    session: StageSession,
) -> dict[str, float]:
    """Run the scenarios, greedy; the parts hold no timings, so the same model gives the same bytes.

    Raises GlassworksError when fewer scenarios with seen phrasings succeed than the configuration asks for.
    """
    fix_threads(1)  # greedy choices must not depend on how many cores split a sum
    scenarios = choose_scenarios(inputs["scenarios"], config.max_scenarios)
    toolbox = open_toolbox(inputs["documents"], inputs["store"])
    assistant = load_assistant(inputs["model"], toolbox.grammar)
    session.log(f"{len(scenarios)} scenarios, tools: {', '.join(toolbox.tools)}")
    verdicts = run_scenarios(scenarios, assistant, toolbox, config, session)
    write_part(outputs["traces"], AGENT_TRACE, trace_rows(verdicts))
    write_part(outputs["results"], AGENT_RESULTS, (verdict.row() for verdict in verdicts))
    findings.show(verdicts, config.num_samples, session)
    findings.check_gate(verdicts, config.minimum_success_fraction)
    return headline(verdicts)


def choose_scenarios(folder: Path, max_scenarios: int) -> list[Scenario]:
    """The first scenarios of each family and phrasing in turn. Raises UserError when there is none."""
    groups: dict[tuple[str, str], list[Scenario]] = {}
    for row in read_rows(folder):
        scenario = Scenario.from_row(row)
        groups.setdefault((scenario.family, scenario.phrasing), []).append(scenario)
    if not groups:
        raise UserError(
            f"{folder} holds no scenario", hint="corpus_prep makes them: glassworks rerun corpus_prep"
        )
    in_turn = [scenario for rank in zip_longest(*groups.values()) for scenario in rank if scenario]
    return sorted(in_turn[:max_scenarios], key=lambda scenario: scenario.scenario_id)


def run_scenarios(
    scenarios: Sequence[Scenario],
    assistant: Assistant,
    toolbox: ToolBox,
    config: AgentSmokeConfig,
    session: StageSession,
) -> list[Verdict]:
    """One episode and one verdict for each scenario. Raises StopRequested between two of them."""
    verdicts: list[Verdict] = []
    for scenario in scenarios:
        if session.should_stop():
            raise StopRequested(
                f"stopped after {len(verdicts)} of {len(scenarios)} scenarios",
                hint="build again to redo them",
            )
        episode = run_episode(
            [{"role": "user", "content": scenario.prompt}],
            lambda messages: assistant.turn(messages, config.max_new_tokens),
            toolbox,
            config.max_steps,
        )
        verdicts.append(judge(scenario, episode))
        num_right = sum(verdict.success for verdict in verdicts)
        session.progress(len(verdicts), len(scenarios), unit="scenarios", right=num_right)
    return verdicts


def trace_rows(verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """Rows of the traces part: the request as step 0, then one row for each turn of the model."""
    for verdict in verdicts:
        yield from _episode_rows(verdict.scenario.scenario_id, verdict.episode)


def _episode_rows(scenario_id: str, episode: Episode) -> Iterator[dict[str, Any]]:
    empty = {"tool": "", "arguments": "", "result": "", "num_tokens": 0}
    asked = {"step": 0, "role": "user", "content": episode.prompt, "status": "asked"}
    yield {"scenario_id": scenario_id, **empty, **asked}
    for number, step in enumerate(episode.steps, start=1):
        call = step.call or {"name": "", "arguments": {}}
        yield {
            "scenario_id": scenario_id,
            "step": number,
            "role": "assistant",
            "content": step.spoken,
            "tool": call["name"],
            "arguments": json.dumps(call["arguments"], ensure_ascii=False) if step.call else "",
            "result": step.result,
            "num_tokens": step.num_tokens,
            "status": step.status,
        }
