"""The flow: nine stages in order, each an async task, those that do not need each other side by side."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows.build import Build, NotReached, gather
from flows.live_progress import LiveProgress, artifact_key, one_of_each, publish_results
from flows.report import render_markdown
from flows.settings import DEFAULT_PRESET, build_settings
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError, StopRequested
from stages.runtime.events import EVENTS_NAME, read_events
from stages.runtime.spec import StageSpec
from stages.runtime.store import Store

#: The build that the tasks of this flow run work on. Not a task parameter: Prefect walks through those.
CURRENT: ContextVar[Build] = ContextVar("build")


@flow(name="build-llm", persist_result=False)
async def build_llm(
    preset: str = DEFAULT_PRESET,
    sources: list[str] | None = None,
    changes: list[str] | None = None,
    force: list[str] | None = None,
    store: str = "store",
    trust_code: bool = False,
) -> str:
    """Build a language model end to end; `changes` are like `pretrain.depth=6`. Returns the report's path."""
    settings = build_settings(
        preset, sources=sources or (), changes=changes or (), force=force or (), trust_code=trust_code
    )
    with Terminal() as terminal:
        return str(await run_build(Build(Store(Path(store)), settings, terminal)))


async def build_flow(build: Build) -> Path:
    """Run a build that is prepared already as a flow run of its own (the command line's way in)."""
    CURRENT.set(build)
    report: Path = await _prepared(build.run_id)
    return report


@flow(name="build-llm", flow_run_name="{run_id}", persist_result=False)
async def _prepared(run_id: str) -> Path:
    return await run_build(CURRENT.get())


async def run_build(build: Build) -> Path:
    """Run all stages of a build as tasks of the current flow run; raises at the end if one failed."""
    CURRENT.set(build)
    pending: dict[str, asyncio.Task[None]] = {}
    for spec in build.specs:
        needed = [pending[name] for name in {read.stage for read in spec.reads.values()}]
        pending[spec.name] = asyncio.create_task(_when_ready(spec, needed))
    try:
        await asyncio.gather(*pending.values())
    finally:
        for waiting in pending.values():
            waiting.cancel()
        await asyncio.gather(*pending.values(), return_exceptions=True)
        report = await asyncio.to_thread(build.write_report)
    await _publish_report(build, report)
    failed = [o for o in build.outcomes.values() if o.outcome == "failed"]
    if failed:
        raise GlassworksError(f"{', '.join(o.name for o in failed)} did not finish", hint=f"see {report}")
    return report


async def _when_ready(spec: StageSpec, needed: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*needed)
    running: Any = run_stage.with_options(name=spec.name)(spec.name, return_state=True)
    await running


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
async def run_stage(name: str) -> State[Any]:
    """One stage: `Cached` when its artifact is there, else run, and shown while it runs."""
    build = CURRENT.get()
    spec = next(spec for spec in STAGES if spec.name == name)
    logger = get_run_logger()
    try:
        async with LiveProgress(name, logger) as progress:
            artifact = await build.stage(spec, progress.event)
    except (NotReached, StopRequested) as error:
        return Cancelled(message=str(error))
    except GlassworksError as error:
        logger.error("%s", error)
        return Failed(message=str(error))
    record = build.outcomes[name]
    if record.outcome != "ran":
        return Completed(name="Cached", message=f"{artifact.manifest.fingerprint} is there and whole")
    logger.info("ran because: %s", "; ".join(record.reasons))
    await publish_results(name, one_of_each(list(read_events(artifact.folder / EVENTS_NAME))))
    return Completed(message=artifact.manifest.fingerprint)


async def _publish_report(build: Build, report: Path) -> None:
    record = build.record()
    markdown = render_markdown(record, *gather(build.store, record))
    key = artifact_key("report", build.run_id)
    await acreate_markdown_artifact(markdown=f"{markdown}\n\nFull report: `{report}`\n", key=key)
