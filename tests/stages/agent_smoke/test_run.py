"""The stage from end to end, on a model that has learned three lessons by heart and one that has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_contracts.agent import AGENT_RESULTS, AGENT_SCENARIOS, AGENT_TRACE
from data_contracts.tables import read_rows, write_part
from stages.agent_smoke import run as stage
from stages.agent_smoke import toolbox as toolboxes
from stages.agent_smoke.spec import SPEC, AgentSmokeConfig
from stages.runtime.errors import GlassworksError, StopRequested, UserError
from stages.runtime.store import file_sha256


class EmptyIndex:
    """A vector store without hits; the real one has its own tests."""

    def search(self, query: str, k: int) -> list[Any]:
        return []


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolboxes.HybridIndex, "from_folder", lambda folder: EmptyIndex())


def scenario_row(
    number: int, family: str, prompt: str, calls: list[Any], answer: str, phrasing: str
) -> dict[str, Any]:
    return {
        "scenario_id": f"s{number:03d}",
        "family": family,
        "phrasing": phrasing,
        "prompt": prompt,
        "expected_calls": json.dumps(calls),
        "expected_answer": answer,
    }


def sum_call(expression: str) -> dict[str, Any]:
    return {"name": "calculator", "arguments": {"expression": expression}}


SCENARIOS = [
    scenario_row(0, "calculator", "What is 2+3?", [sum_call("2+3")], "5", "seen"),
    scenario_row(1, "calculator", "What is 6*7?", [sum_call("6*7")], "42", "seen"),
    scenario_row(
        2,
        "lookup",
        "What does os.path.join do?",
        [{"name": "lookup", "arguments": {"symbol": "os.path.join"}}],
        "join two or more path names",
        "seen",
    ),
    scenario_row(3, "chat", "Hello", [], "", "seen"),
    scenario_row(4, "calculator", "Kindly add 90 to 7, please!", [sum_call("90+7")], "97", "unseen"),
]


@pytest.fixture
def inputs(tmp_path: Path, documents: Path, trained: Path) -> dict[str, Path]:
    write_part(tmp_path / "scenarios", AGENT_SCENARIOS, SCENARIOS)
    return {"scenarios": tmp_path / "scenarios", "documents": documents, "model": trained, "store": tmp_path}


@pytest.fixture
def run_stage(
    inputs: dict[str, Path], tmp_path: Path, session: Any
) -> Callable[..., tuple[Path, dict[str, float]]]:
    def run_once(name: str = "out", **settings: Any) -> tuple[Path, dict[str, float]]:
        outputs = {part: tmp_path / name / part for part in SPEC.writes}
        metrics = stage.run(AgentSmokeConfig(**settings), inputs, outputs, session)
        return tmp_path / name, metrics

    return run_once


def test_a_model_that_knows_the_format_passes(run_stage: Callable[..., Any], session: Any) -> None:
    out, metrics = run_stage(minimum_success_fraction=1.0)
    assert (metrics["success_fraction_seen"], metrics["exact_call_fraction_seen"]) == (1.0, 1.0)
    assert metrics["valid_call_fraction"] == 1.0
    assert AGENT_TRACE.check(out / "traces") == [] and AGENT_RESULTS.check(out / "results") == []
    trace = [row for row in read_rows(out / "traces") if row["scenario_id"] == "s000"]
    assert [(row["step"], row["role"], row["status"]) for row in trace] == [
        (0, "user", "asked"),
        (1, "assistant", "called"),
        (2, "assistant", "answered"),
    ]
    assert (trace[1]["tool"], trace[1]["arguments"], trace[1]["result"]) == (
        "calculator",
        '{"expression": "2+3"}',
        "5",
    )
    assert trace[2]["content"] == "2+3 is 5." and trace[2]["num_tokens"] > 3


def test_the_report_gets_families_endings_chart_and_failures(
    run_stage: Callable[..., Any], session: Any
) -> None:
    _, metrics = run_stage(minimum_success_fraction=0.0, num_samples=4)
    (families,) = session.named("table", "agent_families")
    labels = {(row[0], row[1]) for row in families["rows"]}
    assert {("calculator", "seen"), ("calculator", "unseen"), ("all", "seen"), ("all", "unseen")} <= labels
    (endings,) = session.named("table", "agent_endings")
    assert sum(row[1] for row in endings["rows"]) == metrics["num_scenarios"] == 5
    (chart,) = session.named("chart", "agent_success")
    assert [point[0] for point in chart["series"]["seen"]] == ["calculator", "chat", "lookup"]
    assert all(low <= share <= high for _, share, low, high in chart["series"]["seen"])
    failed = [sample for sample in session.named("sample") if "expected:" in sample["text"]]
    assert [sample["prompt"] for sample in failed] == ["Kindly add 90 to 7, please!"]
    assert session.named("progress")[-1]["done"] == 5


def test_the_same_model_gives_the_same_bytes(run_stage: Callable[..., Any]) -> None:
    first, _ = run_stage("first", minimum_success_fraction=0.0)
    second, _ = run_stage("second", minimum_success_fraction=0.0)
    for part in SPEC.writes:
        name = "part-00000.parquet"
        assert file_sha256(first / part / name) == file_sha256(second / part / name)


def test_a_model_that_knows_nothing_fails_and_shows_how(
    run_stage: Callable[..., Any], inputs: dict[str, Path], untrained: Path, session: Any
) -> None:
    inputs["model"] = untrained
    with pytest.raises(GlassworksError, match="expected at least 80 %"):
        run_stage(minimum_success_fraction=0.8)
    assert session.named("table", "agent_families"), "the failures are shown before the stage fails"
    assert any("expected:" in sample["text"] for sample in session.named("sample"))


def test_scenarios_are_taken_in_turn_from_each_group(inputs: dict[str, Path]) -> None:
    chosen = stage.choose_scenarios(inputs["scenarios"], 4)
    assert [scenario.scenario_id for scenario in chosen] == ["s000", "s002", "s003", "s004"]


def test_no_scenario_at_all_is_the_users_to_mend(tmp_path: Path) -> None:
    write_part(tmp_path / "none", AGENT_SCENARIOS, [])
    with pytest.raises(UserError, match="holds no scenario"):
        stage.choose_scenarios(tmp_path / "none", 4)


def test_a_stop_request_is_heard_between_scenarios(
    run_stage: Callable[..., Any], session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([False, True])
    monkeypatch.setattr(session, "should_stop", lambda: next(asked))
    with pytest.raises(StopRequested, match="after 1 of 5 scenarios"):
        run_stage()


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean 'max_steps'"):
        SPEC.parse_config({"max_step": 3})
    with pytest.raises(UserError, match="minimum_success_fraction"):
        SPEC.parse_config({"minimum_success_fraction": 80})
