"""Workers for stages without their hosts: what takes a flow run, and what becomes of it.

As a program, `python stage_workers.py FLOW_RUN_ID` is what a worker starts for a stage.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectAlreadyExists
from prefect.flow_engine import run_flow_async
from prefect.states import Pending, Running

from flows import launch, run_stage, stage_order
from flows.backends import backend_named
from flows.deployments import STAGE_POOL
from flows.job import Backend, Job
from flows.launch_on_workers import DEPLOYMENT
from flows.stage_order import StageOrder
from stages.runtime.fingerprint import key_parts
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store
from tests.flows import dummy_stages

BACKEND = backend_named("workers")


def spec_of(name: str) -> StageSpec:
    return next(spec for spec in dummy_stages.STAGES if spec.name == name)


def job(store: Store, name: str, inputs: dict[str, Artifact] | None = None, **settings: Any) -> Job:
    spec, given = spec_of(name), inputs or {}
    config = spec.parse_config(settings)
    digests = {role: artifact.manifest.parts["text"].digest for role, artifact in given.items()}
    folders = {role: artifact.part("text") for role, artifact in given.items()}
    return Job(spec, config, key_parts(spec, config, digests), folders, store, run_id="run")


@asynccontextmanager
async def worker(takes: Any) -> AsyncIterator[PrefectClient]:
    """The pool and the deployment; `takes(client, flow_run)` is called once for each run that is due."""
    name = DEPLOYMENT.partition("/")[2]
    async with get_client() as client:
        with suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=STAGE_POOL, type="process"))
        flow_id = await client.create_flow(run_stage.run_stage)
        await client.create_deployment(flow_id, name, work_pool_name=STAGE_POOL)
        over = asyncio.Event()
        polling = asyncio.create_task(_poll(client, takes, over))
        try:
            yield client
        finally:
            over.set()
            await polling


async def _poll(client: PrefectClient, takes: Any, over: asyncio.Event) -> None:
    """Ends in good order: see flows/prefect_server.py for what requests that are cut short do to a server."""
    taken: dict[Any, asyncio.Task[None]] = {}
    while takes is not None and not over.is_set():
        for found in await client.get_scheduled_flow_runs_for_work_pool(STAGE_POOL):
            if found.flow_run.id not in taken:
                taken[found.flow_run.id] = asyncio.create_task(takes(client, found.flow_run))
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 0.4)
    await asyncio.gather(*taken.values(), return_exceptions=True)


async def cancelled_once(made: Sequence[FlowRun], folder: Path) -> State[Any] | None:
    """Launch a stage that nobody takes, cancel it as soon as a run is `made`; the state of that run."""
    async with worker(None) as client:
        launching = asyncio.create_task(BACKEND.launch(job(Store(folder), "first"), lambda _: None))
        while not made:
            await asyncio.sleep(0.05)
        launching.cancel()
        with suppress(asyncio.CancelledError):
            await launching
        assert launching.cancelled()
        return (await client.read_flow_run(made[0].id)).state


async def run(client: PrefectClient, flow_run: FlowRun) -> None:
    """What a worker does, and what its process does."""
    await client.set_flow_run_state(flow_run.id, Pending())
    await run_taken(client, flow_run.id)


async def run_taken(client: PrefectClient, flow_run_id: UUID) -> None:
    """What the process does that a worker starts."""
    flow_run = await client.read_flow_run(flow_run_id)
    order = StageOrder.model_validate(flow_run.parameters["order"])
    await run_flow_async(run_stage.run_stage, flow_run, {"order": order}, return_type="state")


async def die(client: PrefectClient, flow_run: FlowRun) -> None:
    """A host that loses power right after it has begun."""
    await client.set_flow_run_state(flow_run.id, Pending())
    await client.set_flow_run_state(flow_run.id, Running())


def launched(asked: Job, takes: Any, backend: Backend = BACKEND) -> tuple[Artifact, list[dict[str, Any]]]:
    """What comes of a job where workers do this with what they take."""
    events: list[dict[str, Any]] = []

    async def launch_it() -> Artifact:
        async with worker(takes):
            return await backend.launch(asked, events.append)

    return asyncio.run(launch_it()), events


def told(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events if event["event"] == "log"]


async def main(flow_run_id: str) -> None:
    """Run a stage, one of the five short ones."""
    stage_order.STAGES = dummy_stages.STAGES
    launch.entry_point = dummy_stages.entry_point
    async with get_client() as client:
        await run_taken(client, UUID(flow_run_id))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
