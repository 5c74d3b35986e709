"""What the longer commands do, apart from parsing their arguments."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.build import Build
from flows.job import Backend
from flows.plan import PlannedStage, upstream
from flows.prefect_server import PrefectServer, prepare_prefect
from flows.records import artifact_of, newest_with, read_record
from flows.report.record import RunRecord
from flows.run_report import essence_of
from flows.settings import BuildSettings, known_stage
from flows.terminal import Terminal
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError, RetryableError, UserError, did_you_mean
from stages.runtime.events import format_seconds
from stages.runtime.store import Store

#: Which part of which stage is the model of that name.
MODELS = {
    "base": ("pretrain", "model"),
    "sft": ("sft", "model"),
    "dpo": ("dpo", "model"),
    "int8": ("quantize", "int8"),
    "int4": ("quantize", "int4"),
}


def build_command(store: Store, settings: BuildSettings, until: str | None, backend: Backend) -> int:
    """`glassworks build`: run the flow, print the essence, return the exit code."""
    specs = specs_until(until)
    command = shlex.join(["glassworks", *sys.argv[1:]])

    def prepare(terminal: Terminal) -> Build:
        return Build(store, settings, terminal, command=command, specs=specs, backend=backend)

    return _run_flow(store, prepare)


def rerun_command(
    store: Store,
    record: RunRecord,
    stages: list[str],
    with_downstream: bool,
    changes: list[str],
    force: bool,
    backend: Backend,
) -> int:
    """`glassworks rerun`: the same for some stages, or them and what follows."""

    def prepare(terminal: Terminal) -> Build:
        from flows.rerun_stage import rerun_build

        command = shlex.join(["glassworks", *sys.argv[1:]])
        return rerun_build(store, record, stages, with_downstream, changes, terminal, command, force, backend)

    return _run_flow(store, prepare)


def _run_flow(store: Store, prepare: Callable[[Terminal], Build]) -> int:
    """Run a build as a flow, on a server of its own if there is no other, and tell how it ended."""
    prepare_prefect(store)
    failure: GlassworksError | None = None
    with PrefectServer(Path(os.environ["PREFECT_HOME"])) as server, Terminal() as terminal:
        gc.disable()  # what is imported stays: to look through it again and again takes a third of a second
        import httpx
        from prefect.exceptions import ObjectNotFound

        from flows.build_llm import build_flow, drain  # a second in which the server starts up
        from flows.live_progress import FORGOTTEN, is_not_found

        gc.freeze()
        gc.enable()
        logging.raiseExceptions = False  # else Prefect prints each line that a server which is gone misses
        build = prepare(terminal)
        server.wait()
        try:
            asyncio.run(build_flow(build))
        except KeyboardInterrupt:  # a second Ctrl-C: the stages notice by themselves that we are gone
            build.stopped = True
        except GlassworksError as error:
            failure = error
        except (httpx.HTTPError, ObjectNotFound) as error:
            shows_less = f"the Prefect server shows less of this build than the report: {error}"
            terminal.say_once(f"warning: {FORGOTTEN if is_not_found(error) else shows_less}")
            failure = build.failure() or cut_short(build, error)
        finally:
            drain()
    _tell_end(build, terminal, failure)
    if failure is not None:
        return failure.exit_code
    return build.stop_exit_code if build.stopped else 0


def cut_short(build: Build, error: Exception) -> GlassworksError | None:
    """A build whose server failed it before all stages were reached is no success."""
    if build.stopped or build.record().status == "completed":
        return None
    hint = "glassworks doctor; the same command goes on"
    why = "" if str(error) == "None" else f": {error}"  # so says Prefect of a run that is gone
    return RetryableError(f"the Prefect server ended the build early{why}", hint=hint)


def _tell_end(build: Build, terminal: Terminal, failure: GlassworksError | None) -> None:
    record = build.record()
    if record.status != "stopped":
        terminal.say("")
        for line in essence_of(build.store, record):
            terminal.say(line)
    if failure is not None:
        terminal.say(f"\nerror: {failure}")
    if record.status != "completed":
        again = (
            "when that is mended, the same command" if isinstance(failure, UserError) else "the same command"
        )
        terminal.say(f"{record.status}; {again} goes on from here: {build.command}")
    terminal.say(f"report: {build.store.root / 'runs' / record.run_id / 'report.html'}")


def serve_ui(store: Store, port: int | None) -> None:
    """Serve the Prefect UI on the store's records until Ctrl-C."""
    prepare_prefect(store)
    with PrefectServer(Path(os.environ["PREFECT_HOME"]), port) as server:
        server.wait()
        how_long = "Ctrl-C ends it" if server.is_ours else "it runs already"
        print(f"{server.ui_url}/runs  ({how_long})", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.join()


def specs_until(until: str | None) -> tuple[Any, ...]:
    """All stages, or `until` and those that it needs. Raises UserError where there is no such stage."""
    if until is None:
        return STAGES
    needed = {known_stage(until)} | upstream(until)
    return tuple(spec for spec in STAGES if spec.name in needed)


def plan_rows(planned: Sequence[PlannedStage]) -> Iterator[str]:
    """`sft             RUN   learning_rate: 0.001 -> 0.002`, one or more lines a stage."""
    for stage in planned:
        took = f" (took {format_seconds(stage.estimated_seconds)})" if stage.estimated_seconds else ""
        key = f"  {stage.artifact.manifest.fingerprint}" if stage.artifact else ""
        reasons = list(stage.reasons) or [""]
        yield f"{stage.name:<15} {stage.outcome:<5} {reasons[0]}{key}{took}".rstrip()
        for reason in reasons[1:]:
            yield f"{'':<21} {reason}"


def chat_command(store: Store, run: str | None, model: str, compare: str, extra: Sequence[str]) -> list[str]:
    """The command that starts the chat on the artifacts of a run, by default of the newest that has them."""
    names = [name.strip() for name in compare.split(",") if name.strip()] or [model]
    if unknown := [name for name in names if name not in MODELS]:
        guess = did_you_mean(unknown[0], MODELS)
        raise UserError(f"there is no model {unknown[0]!r}{guess}", hint=f"models: {', '.join(MODELS)}")
    needed = {MODELS[name][0] for name in names} | {"vector_store", "corpus_prep"}
    record = read_record(store, run) if run else newest_with(store, *sorted(needed))
    folders = [_model_folder(store, record, name) for name in names]
    command = [sys.executable, "-m", "stages.agent_smoke.chat", "--model", str(folders[0])]
    if folders[1:]:
        command += ["--compare", *map(str, folders[1:])]
    if "--no-tools" not in extra:
        command += ["--store", str(artifact_of(store, record, "vector_store").part("store"))]
        command += ["--documents", str(artifact_of(store, record, "corpus_prep").part("documents"))]
    return [*command, *extra]


def _model_folder(store: Store, record: RunRecord, name: str) -> Path:
    stage, part = MODELS[name]
    return artifact_of(store, record, stage).part(part)
