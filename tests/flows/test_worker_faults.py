"""What must cost a stage on another host nothing but time: a killed worker, a server that is away."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending

from flows import worker_runs
from flows.stage_order import host_name
from stages.runtime.errors import RetryableError, UserError
from stages.runtime.store import Store
from tests.flows import stage_workers
from tests.flows.stage_workers import BACKEND, cancelled_once, job, launched, run, told, worker

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("dummy_workers", "prefect_api")]

AWAY = "waits: the Prefect server does not answer; where it ran: glassworks up"


def test_a_stage_whose_worker_is_killed_goes_on(tmp_path: Path, repository: Path) -> None:
    """Its process prints to a pipe that the worker took along."""

    async def killed(client: PrefectClient, flow_run: FlowRun) -> None:
        await client.set_flow_run_state(flow_run.id, Pending())
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, stage_workers.__file__, str(flow_run.id)],
            cwd=repository,
            env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(repository)},
            stdout=writing,
            stderr=writing,
        )
        os.close(writing)
        while not (asked.work / "checkpoints" / "steps").exists():
            await asyncio.sleep(0.05)
        os.close(reading)
        await asyncio.to_thread(process.wait)

    asked = job(Store(tmp_path / "store"), "first", steps=3, seconds=0.5)
    artifact, events = launched(asked, killed)
    assert artifact.part("text").is_dir()
    assert told(events) == [f"runs on {host_name()}", "the glass is hot"]


def test_a_server_that_is_away_during_the_submission_costs_only_time(
    tmp_path: Path, prefect_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the run, its answer is lost, it refuses for a while: there is one run."""
    create = worker_runs._create_run
    asked = job(Store(tmp_path), "first")
    events: list[dict[str, Any]] = []
    attempts: list[str] = []

    async def lose_the_answer(*given: Any) -> FlowRun:
        made = await create(*given)
        attempts.append(given[-1])
        if len(attempts) == 1:
            prefect_line.cut_after(up=0)
            raise httpx.ReadError("the line was cut")
        return made

    async def launch_it() -> list[FlowRun]:
        async with worker(None) as client:
            launching = asyncio.create_task(BACKEND.launch(asked, events.append))
            while told(events) != [AWAY]:
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)
            prefect_line.mend()
            while len(attempts) < 2:
                await asyncio.sleep(0.05)
            launching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await launching
            return [one for one in await client.read_flow_runs() if one.idempotency_key == attempts[0]]

    monkeypatch.setattr(worker_runs, "_create_run", lose_the_answer)
    [made] = asyncio.run(launch_it())
    assert attempts[0] == attempts[1]
    assert made.state is not None and made.state.is_cancelled()
    assert told(events) == [AWAY]


def test_a_run_whose_answer_was_lost_is_cancelled_with_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = worker_runs._create_run
    made: list[FlowRun] = []

    async def lose_the_answer(*given: Any) -> FlowRun:
        made.append(await create(*given))
        raise httpx.ReadError("the line was cut")

    monkeypatch.setattr(worker_runs, "_create_run", lose_the_answer)
    assert asyncio.run(cancelled_once(made, tmp_path)).is_cancelled()


def test_a_run_that_somebody_deletes_ends_its_stage(tmp_path: Path) -> None:
    asked = job(Store(tmp_path / "store"), "first", steps=1000, seconds=0.1)
    steps = asked.work / "checkpoints" / "steps"

    async def delete(client: PrefectClient, flow_run: FlowRun) -> None:
        running = asyncio.create_task(run(client, flow_run))
        while not steps.exists():
            await asyncio.sleep(0.1)
        await client.delete_flow_run(flow_run.id)
        await running

    with pytest.raises(RetryableError, match="flow run of first is not on the Prefect server any more"):
        launched(asked, delete)
    assert 0 < int(steps.read_text()) < 1000


def test_a_deployment_that_goes_while_the_build_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_runs, "DEPLOYMENT", "run-stage/missing")
    with pytest.raises(UserError, match="has no deployment") as caught:
        launched(job(Store(tmp_path / "store"), "first"), None)
    assert "glassworks up" in caught.value.hint
