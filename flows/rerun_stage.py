"""The flow that runs stages again, on the inputs of an earlier run; with all that follows, if asked."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.after_a_crash import stop_containers
from flows.backends import AskedBackend, backend_named, backend_of_worker
from flows.build import Build
from flows.build_llm import run_build, store_of_worker
from flows.job import Backend
from flows.launch import ProcessBackend
from flows.plan import rerun_set
from flows.records import earlier_run, needed_by
from flows.report.record import RunRecord
from flows.settings import parse_change, settings_of_run
from flows.stores import open_store
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import UserError
from stages.runtime.store import Artifact, Store

StageName = Literal[
    "corpus_prep",
    "tokenizer",
    "pretrain",
    "sft",
    "dpo",
    "quantize",
    "vector_store",
    "agent_smoke",
    "benchmark_eval",
]
Stages = Annotated[list[StageName], Field(min_length=1)]
Override = Annotated[str, Field(pattern=r"^[a-z_]+\.[a-z0-9_]+=.+$")]


@flow(
    name="rerun-stage",
    persist_result=False,
    on_cancellation=[stop_containers],
    on_crashed=[stop_containers],
)
async def rerun_stage(
    stages: Stages,
    with_downstream: bool = False,
    force: bool = True,
    overrides: list[Override] = [],  # noqa: B006  (Prefect's form shows a list for it)
    run: str = "",
    store: str = "",
    backend: AskedBackend = "default",
    limits: list[str] = [],  # noqa: B006
) -> Any:
    """Run stages again on an earlier run's inputs. Returns the report's path.

    Prefect's form shows what follows beside its fields.

    Args:
        stages: The stages to run again.
        with_downstream: Also run all that follows: every stage that reads what they write, and so on.
        force: Run them even if nothing changed; else what is there is reused.
        overrides: Changed settings of the stages that run again, one to an item, such as sft.epochs=4
        run: Name of the run whose inputs and settings to take; empty for the newest that has them and was not
            cancelled.
        store: Folder of the artifacts, or s3://BUCKET/PREFIX; empty for the worker's.
        backend: Where stages run: process; docker, each in a container; workers or workers-docker, on all
            hosts; default, as the worker was started (GLASSWORKS_BACKEND).
        limits: What containers may use, one to an item, such as pretrain.memory_gib=16
    """
    folder = store_of_worker(store)
    place = open_store(folder)
    record = earlier_run(place, run, rerun_set(stages, with_downstream))
    with Terminal() as terminal:
        command = ["glassworks", "rerun", *stages, "--run", record.run_id, "--store", folder]
        backend_name = backend_of_worker(backend)
        command += ["--backend", backend_name, *["--with-downstream"] * with_downstream]
        command += ["--no-force"] * (not force)
        command += [word for limit in limits for word in ("--limit", limit)]
        command += [word for change in overrides for word in ("--set", change)]
        asked = shlex.join(command)
        where = backend_named(backend_name, limits)
        build = rerun_build(place, record, stages, with_downstream, overrides, terminal, asked, force, where)
        return await run_build(build)


def rerun_build(
    store: Store,
    record: RunRecord,
    stages: Collection[str],
    with_downstream: bool,
    changes: Collection[str],
    terminal: Terminal,
    command: str,
    force: bool = True,
    backend: Backend | None = None,
) -> Build:
    """The build of a rerun: everything that is not rerun is taken as the earlier run had it.

    Raises UserError for an unknown stage, for a change of a stage that is not rerun, and where the earlier
    run has no whole artifact of what is needed.
    """
    rerun = rerun_set(stages, with_downstream)
    for change in changes:
        if (changed := parse_change(change)[0]) not in rerun:
            hint = f"rerun {changed} too, with all that follows if it should count there"
            raise UserError(f"{change!r} changes {changed}, which is not rerun", hint=hint)
    settings = settings_of_run(record, changes, force=rerun if force else ())
    kept = _kept(store, record, rerun)
    specs = tuple(spec for spec in STAGES if spec.name in rerun or spec.name in kept)
    where = backend or ProcessBackend()
    return Build(store, settings, terminal, command, specs=specs, only=kept, backend=where)


def _kept(store: Store, record: RunRecord, rerun: set[str]) -> Mapping[str, Artifact]:
    kept, faults = {}, {}
    for done in record.stages:
        if done.name in rerun or not done.fingerprint:
            continue
        artifact = store.find(done.name, done.fingerprint)
        if artifact is None:
            faults[done.name] = f" ({store.faults(done.name, done.fingerprint)[0]})"
        else:
            kept[done.name] = artifact
    if missing := sorted(needed_by(rerun) - kept.keys()):
        named = ", ".join(f"{stage}{faults.get(stage, '')}" for stage in missing)
        raise UserError(
            f"run {record.run_id} has no whole artifact of {named}",
            hint="glassworks build makes what is missing",
        )
    return kept
