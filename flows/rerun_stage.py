"""The flow that runs one stage again, on the inputs of an earlier run; with all that follows, if asked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from prefect import flow

from flows.after_a_crash import stop_containers
from flows.backends import DEFAULT_BACKEND, BackendName, backend_named
from flows.build import Build
from flows.build_llm import run_build
from flows.job import Backend
from flows.plan import downstream
from flows.records import earlier_run
from flows.report.record import RunRecord
from flows.settings import known_stage, settings_of_run
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


@flow(
    name="rerun-stage",
    persist_result=False,
    on_cancellation=[stop_containers],
    on_crashed=[stop_containers],
)
async def rerun_stage(
    stage: StageName,
    with_downstream: bool = False,
    run: str | None = None,
    changes: list[str] | None = None,
    store: str = "store",
    backend: BackendName = DEFAULT_BACKEND,
    limits: list[str] | None = None,
) -> str:
    """Run `stage` again although nothing changed. Returns the report's path."""
    place = Store(Path(store))
    record = earlier_run(place, run, stage)
    with Terminal() as terminal:
        command = ["glassworks", "rerun", stage, "--run", record.run_id, "--store", store]
        command += ["--backend", backend, *["--with-downstream"] * with_downstream]
        command += [word for limit in limits or () for word in ("--limit", limit)]
        command += [word for change in changes or () for word in ("--set", change)]
        asked = shlex.join(command)
        where = backend_named(backend, limits or ())
        build = rerun_build(place, record, stage, with_downstream, changes or [], terminal, asked, where)
        return str(await run_build(build))


def rerun_build(
    store: Store,
    record: RunRecord,
    stage: str,
    with_downstream: bool,
    changes: list[str],
    terminal: Terminal,
    command: str,
    backend: Backend,
) -> Build:
    """The build of a rerun: everything that is not rerun is taken as the earlier run had it."""
    known_stage(stage)
    rerun = {stage} | (downstream(stage) if with_downstream else set())
    settings = settings_of_run(record, changes, force=rerun)
    kept = _kept(store, record, rerun)
    return Build(store, settings, terminal, command, only=kept, backend=backend)


def _kept(store: Store, record: RunRecord, rerun: set[str]) -> Mapping[str, Artifact]:
    kept = {}
    for done in record.stages:
        if done.name in rerun or not done.fingerprint:
            continue
        artifact = store.find(done.name, done.fingerprint)
        if artifact is not None:
            kept[done.name] = artifact
    needed = {r.stage for s in STAGES if s.name in rerun for r in s.reads.values()} - rerun
    if missing := sorted(needed - kept.keys()):
        raise UserError(
            f"run {record.run_id} has no whole artifact of {', '.join(missing)}",
            hint="glassworks build makes what is missing",
        )
    return kept
