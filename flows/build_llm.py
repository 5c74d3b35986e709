"""The flow: nine stages in order, each an async task, those that do not need each other side by side."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.exceptions import CancelledRun
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_UI_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed

from flows.after_a_crash import stop_containers
from flows.backends import AskedBackend, backend_named, backend_of_worker
from flows.build import Build, NotReached
from flows.cancel_watch import CancelWatch
from flows.gpu_slots import gpu_slot
from flows.live_progress import LiveProgress, Screen, one_of_each, publish_results
from flows.lost_runs import close_lost_runs
from flows.prefect_server import answers
from flows.report import render_markdown
from flows.run_report import gather
from flows.settings import DEFAULT_PRESET, build_settings
from flows.store_use import alone, in_use
from flows.stores import described, mark_of, open_store
from flows.terminal import Terminal
from flows.unheard import go_on_unheard
from stages.runtime.errors import GlassworksError, RetryableError, StopRequested
from stages.runtime.events import EVENTS_NAME, read_events
from stages.runtime.spec import StageSpec

#: The build that the tasks of this flow run work on. Not a task parameter: Prefect walks through those.
CURRENT: ContextVar[Build] = ContextVar("build")
SCREEN: ContextVar[Screen] = ContextVar("screen")
OVERALL_EVERY_SECONDS = 2.0
DRAIN_SECONDS = 15.0
MAX_RETRIES = 3
STOPPED = "stopped; the same build goes on from here"


@flow(
    name="build-llm",
    persist_result=False,
    on_cancellation=[stop_containers],
    on_crashed=[stop_containers],
)
async def build_llm(
    preset: str = DEFAULT_PRESET,
    sources: list[str] = [],  # noqa: B006  (for a value that may be missing, Prefect's form shows two tabs)
    overrides: list[str] = [],  # noqa: B006
    force: list[str] = [],  # noqa: B006
    store: str = "",
    trust_code: bool = False,
    backend: AskedBackend = "default",
    limits: list[str] = [],  # noqa: B006
) -> Any:
    """Build a language model end to end. Returns the report's path.

    Args:
        preset: tiny, laptop, gpu, or the path of a TOML file on the worker's machine.
        sources: Own data: files, folders or globs on the worker's machine; empty for the preset's.
        overrides: Changed settings, one to an item, such as pretrain.depth=6
        force: Stages to run in any case.
        store: Folder of the artifacts, or s3://BUCKET/PREFIX; empty for the worker's.
        trust_code: Keep artifacts although code or packages changed; they then say so.
        backend: Where stages run: process; docker, each in a container; workers or workers-docker, on all
            hosts; default, as the worker was started (GLASSWORKS_BACKEND).
        limits: What containers may use, one to an item, such as pretrain.memory_gib=16
    """
    settings = build_settings(preset, sources=sources, changes=overrides, force=force, trust_code=trust_code)
    folder = store_of_worker(store)
    place = backend_of_worker(backend)
    where = backend_named(place, limits)
    command = ["glassworks", "build", "--preset", preset, "--store", folder, "--backend", place]
    asked = (("--source", sources), ("--set", overrides), ("--force", force), ("--limit", limits))
    for option, values in asked:
        command += [word for value in values for word in (option, value)]
    with Terminal() as terminal:
        build = Build(open_store(folder), settings, terminal, shlex.join(command), backend=where)
        return await run_build(build)


def store_of_worker(named: str) -> str:
    """The store that a deployment's parameters name, else that of the worker which runs it."""
    return named or os.environ.get("GLASSWORKS_STORE", "store")


async def build_flow(build: Build) -> None:
    """Run a build that is prepared already as a flow run of its own: the command line's way in.

    Raises what `run_build` raises. A build that was asked to stop returns: see `build.stopped`.
    """
    CURRENT.set(build)
    # Prefect's default is five, a minute: so long a build that is done would wait for a server that is gone.
    retries = min(MAX_RETRIES, PREFECT_CLIENT_MAX_RETRIES.value())
    with suppress(CancelledRun), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}):
        await _prepared()


@flow(name="build-llm", persist_result=False)
async def _prepared() -> Any:
    """The build that `CURRENT` holds. No parameters: for even one, Prefect would import all of FastAPI."""
    build = CURRENT.get()
    this = asyncio.current_task()
    assert this is not None
    # Prefect answers SIGTERM by ending the process at once; a build has a record to write first.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _terminate, build, this)
    build.audience.say(f"  watch           {PREFECT_UI_URL.value()}/runs/flow-run/{flow_run.id}")
    try:
        return await run_build(build)
    except asyncio.CancelledError:
        this.uncancel()
        return Cancelled(message=STOPPED)


def _terminate(build: Build, task: asyncio.Task[Any]) -> None:
    build.stop_exit_code = 143
    task.cancel()


def drain() -> None:
    """Send what Prefect still holds back; without it the last states never reach the server."""
    if not answers(PREFECT_API_URL.value() or ""):
        return
    EventsWorker.drain_all(timeout=DRAIN_SECONDS)
    APILogWorker.drain_all(timeout=DRAIN_SECONDS)


async def run_build(build: Build) -> Any:
    """Run all stages of a build as tasks of the current flow run; raises at the end if one failed.

    Returns what the flow is to return: the report's path, or `Cancelled` where the flow run was cancelled.
    """
    go_on_unheard()
    CURRENT.set(build)
    SCREEN.set(screen := Screen(build.audience.say))
    running = asyncio.ensure_future(_run(build, screen))
    watch = CancelWatch(UUID(flow_run.id), running, screen)
    try:
        return str(await running)
    except asyncio.CancelledError:
        if not watch.is_cancelled:
            raise
        return Cancelled(message=STOPPED)
    finally:
        watch.end()


async def _run(build: Build, screen: Screen) -> Path:
    # A run that is tried again builds what it had not finished, even where it was told to build in any case.
    done = await finished_before(UUID(flow_run.id)) if flow_run.run_count > 1 else set()
    build.settings = replace(build.settings, force=build.settings.force - done)
    if not build.backend.elsewhere:
        build.gpu_slot = gpu_slot
    mark = mark_of(build.store)
    with suppress(RetryableError), alone(build.store):
        await close_lost_runs(mark, UUID(flow_run.id))
        await build.backend.clear(build.store)
    async with in_use(build.store):
        async with get_client() as client:  # the same name in the UI, the record and the report
            await client.update_flow_run(UUID(flow_run.id), name=build.run_id, tags=[mark])
        try:
            await build.check()
            async with LiveProgress("build", get_run_logger(), screen) as progress:
                telling = asyncio.create_task(_tell_overall(build, progress))
                try:
                    await _run_stages(build)
                finally:
                    telling.cancel()
                    progress.update(100.0 * build.forecast.fraction, build.forecast.describe())
        except asyncio.CancelledError:
            build.stopped = True
            raise
        finally:
            report = await asyncio.to_thread(build.write_report)
    await screen.show(_publish_report(build, report))
    if failure := build.failure():
        raise failure
    return report


async def finished_before(flow_run_id: UUID) -> set[str]:
    """The stages that ran to their end when the same flow run was tried before."""
    of_it = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    async with get_client() as client:
        task_runs = await client.read_task_runs(flow_run_filter=of_it, limit=200)
    return {run.name for run in task_runs if run.state is not None and run.state.name == "Completed"}


async def _run_stages(build: Build) -> None:
    pending = [asyncio.create_task(_when_ready(build, spec)) for spec in build.specs]
    try:
        await asyncio.gather(*pending)
    finally:
        for waiting in pending:
            waiting.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _tell_overall(build: Build, progress: LiveProgress) -> None:
    while True:
        progress.update(100.0 * build.forecast.fraction, build.forecast.describe())
        await asyncio.sleep(OVERALL_EVERY_SECONDS)


async def _when_ready(build: Build, spec: StageSpec) -> None:
    for needed in {read.stage for read in spec.reads.values()}:
        await build.settled[needed].wait()
    running: Any = run_stage.with_options(name=spec.name)(spec.name, return_state=True)
    await running


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
async def run_stage(name: str) -> State[Any]:
    """One stage: `Cached` when its artifact is there, else run, and shown while it runs."""
    build = CURRENT.get()
    spec = next(spec for spec in build.specs if spec.name == name)
    logger = get_run_logger()
    try:
        async with LiveProgress(name, logger, SCREEN.get()) as progress:
            artifact = await build.stage(spec, progress.event)
    except (NotReached, StopRequested) as error:
        return Cancelled(message=str(error))
    except asyncio.CancelledError:  # Prefect would call it crashed
        return Cancelled(message="stopped; what it has done so far is kept")
    except GlassworksError as error:
        logger.error("%s", error)
        return Failed(message=str(error))
    record = build.outcomes[name]
    if record.outcome != "ran":
        about = "; ".join(record.reasons) or "there and whole"
        return Completed(name="Cached", message=f"{artifact.manifest.fingerprint}: {about}")
    logger.info("ran because: %s", "; ".join(record.reasons))
    folder = await asyncio.to_thread(described, build.store, name, artifact.manifest.fingerprint)
    events = one_of_each(list(read_events(folder / EVENTS_NAME)))
    await SCREEN.get().show(publish_results(name, events))
    return Completed(message=artifact.manifest.fingerprint)


async def _publish_report(build: Build, report: Path) -> None:
    record = build.record()
    markdown = render_markdown(record, *gather(build.store, record))
    text = f"{markdown}\n\nFull report: `{report}`\n"
    await acreate_markdown_artifact(
        markdown=text, key="report", description=f"{build.run_id}: {record.status}"
    )
