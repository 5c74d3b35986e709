"""What Prefect shows of a build: a task per stage, `Cached` hits, failures that stop only what follows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelling, Crashed

from flows import cancel_watch
from flows.build import Build
from flows.build_llm import STOPPED, build_flow
from flows.live_progress import result_key
from flows.settings import build_settings
from stages.runtime.errors import GlassworksError, UserError
from stages.runtime.events import EVENTS_NAME, EventLog
from stages.runtime.session import StageSession
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store
from tests.flows.manifests import FINGERPRINT, empty_manifest


class Silent:
    """Nobody is listening."""

    def say(self, *_: Any) -> None: ...

    def started(self, *_: Any) -> None: ...

    def event(self, *_: Any) -> None: ...

    def finished(self, *_: Any) -> None: ...

    def overall(self, *_: Any) -> None: ...


class RehearsedBuild(Build):
    """A build whose stages do nothing but report; `script` says how each of them ends."""

    script: dict[str, str]
    order: list[str]

    async def _stage(self, spec: StageSpec, on_event: Any) -> Artifact:
        for needed in {read.stage for read in spec.reads.values()}:
            if needed not in self.artifacts:
                return await super()._stage(spec, on_event)
        self.order.append(f"start {spec.name}")
        folder = self.store.artifact_dir(spec.name, FINGERPRINT)
        folder.mkdir(parents=True)
        log = EventLog(folder / EVENTS_NAME, as_json=True)
        session = StageSession(spec.name, folder, log)
        session.progress(1, 2)
        session.table("figures", ["name", "value"], [["loss", 1.5]])
        session.chart(
            "curve", title="loss", x_label="step", y_label="nats", series={"train": [[0, 2.0], [1, 1.0]]}
        )
        on_event({"event": "progress", "done": 1, "total": 2, "unit": "steps", "eta_seconds": 1.0})
        await asyncio.sleep(600 if self.script.get(spec.name) == "endless" else 0.05)
        self.order.append(f"end {spec.name}")
        return self._end(spec, folder)

    def _end(self, spec: StageSpec, folder: Path) -> Artifact:
        outcome: Any = self.script.get(spec.name, "ran")
        self._note(spec, outcome, (), FINGERPRINT, 0.1, "")
        if outcome == "failed":
            raise UserError("found nothing", hint="look elsewhere")
        self.artifacts[spec.name] = Artifact(folder, empty_manifest(spec.name))
        return self.artifacts[spec.name]


pytestmark = pytest.mark.usefixtures("prefect_api")


def rehearse(folder: Path, **script: str) -> RehearsedBuild:
    build = RehearsedBuild(Store(folder), build_settings("tiny"), Silent())
    build.script, build.order = script, []
    return build


async def seen(build: Build) -> tuple[Any, dict[str, Any], list[Any]]:
    """The flow run of a build, its task runs by name, its artifacts."""
    async with get_client() as client:
        [flow_run] = [run for run in await client.read_flow_runs() if run.name == build.run_id]
        tasks = {}
        for _ in range(100):  # task runs arrive as events, a little later
            runs = [r for r in await client.read_task_runs(limit=200) if r.flow_run_id == flow_run.id]
            tasks = {run.name: run for run in runs if run.state and run.state.is_final()}
            if len(tasks) == 9:
                break
            await asyncio.sleep(0.2)
        found = await client.read_artifacts(limit=200)
        return flow_run, tasks, [artifact for artifact in found if artifact.flow_run_id == flow_run.id]


def test_a_build_as_prefect_shows_it(tmp_path: Path) -> None:
    build = rehearse(tmp_path, corpus_prep="hit")
    asyncio.run(build_flow(build))
    report = tmp_path / "runs" / build.run_id / "report.html"
    assert report.read_text(encoding="utf-8").startswith("<!")
    flow_run, tasks, artifacts = asyncio.run(seen(build))
    assert flow_run.state.is_completed()
    assert len(tasks) == 9
    assert tasks["corpus_prep"].state.name == "Cached"
    assert tasks["pretrain"].state.name == "Completed"
    kinds = {(artifact.key, artifact.type) for artifact in artifacts}
    assert {("pretrain-progress", "progress"), ("pretrain-figures", "table")} <= kinds
    assert ("pretrain-curve-plot", "markdown") in kinds
    assert {("report", "markdown"), ("build-progress", "progress")} <= kinds


def test_keys_do_not_say_the_stage_twice() -> None:
    assert result_key("pretrain", "pretrain_loss", "plot") == "pretrain-loss-plot"
    assert result_key("benchmark_eval", "benchmark_accuracy") == "benchmark-eval-accuracy"
    assert result_key("quantize", "Size (MB)") == "quantize-sizemb"


def test_independent_stages_run_side_by_side(tmp_path: Path) -> None:
    build = rehearse(tmp_path)
    asyncio.run(build_flow(build))
    order = build.order
    assert order.index("start vector_store") < order.index("end pretrain")
    assert order.index("start pretrain") < order.index("end vector_store")
    assert order.index("start sft") > order.index("end pretrain")


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    build = rehearse(tmp_path, sft="failed")
    with pytest.raises(GlassworksError, match="sft failed: found nothing"):
        asyncio.run(build_flow(build))
    flow_run, tasks, _ = asyncio.run(seen(build))
    assert flow_run.state.is_failed()
    assert tasks["sft"].state.is_failed()
    assert "look elsewhere" in tasks["sft"].state.message
    assert tasks["vector_store"].state.is_completed()
    assert tasks["quantize"].state.is_cancelled()
    assert build.outcomes["quantize"].outcome == "not reached"
    assert build.record().status == "failed"


@pytest.mark.parametrize("state", [Cancelling(), Crashed(message="taken for lost")])
def test_a_run_that_nobody_signals_stops_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State[Any]
) -> None:
    """Its worker was killed: that it is cancelled stands only on the server."""
    monkeypatch.setattr(cancel_watch, "LOOK_EVERY_SECONDS", 0.1)
    build = rehearse(tmp_path, tokenizer="endless")

    async def build_it() -> State[Any] | None:
        building = asyncio.create_task(build_flow(build))
        while "start tokenizer" not in build.order:
            await asyncio.sleep(0.05)
        async with get_client() as client:
            [run] = [run for run in await client.read_flow_runs() if run.name == build.run_id]
            await client.set_flow_run_state(run.id, state, force=True)
            await asyncio.wait_for(building, 60)
            return (await client.read_flow_run(run.id)).state

    ended = asyncio.run(build_it())
    assert ended is not None and ended.is_cancelled() and ended.message == STOPPED
    assert "end tokenizer" not in build.order
    assert build.record().status == "stopped"
