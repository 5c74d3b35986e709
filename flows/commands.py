"""What the longer commands do, apart from parsing their arguments."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.plan import PlannedStage
from flows.records import artifact_of
from flows.report.record import RunRecord
from flows.settings import BuildSettings, known_stage
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError, UserError
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

#: Nothing may leave the machine, and the terminal is ours: Prefect's own lines go to its UI only.
PREFECT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
}


def prepare_prefect(store: Store) -> None:
    """Settings that must be in the environment before Prefect is imported; the user's own win."""
    for name, value in PREFECT_SETTINGS.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.setdefault("PREFECT_HOME", str(store.root / "prefect")))
    home.mkdir(parents=True, exist_ok=True)


def build_command(store: Store, settings: BuildSettings, until: str | None) -> int:
    """`glassworks build`: run the flow, print the essence, return the exit code."""
    if until is not None:
        known_stage(until)
    prepare_prefect(store)
    from flows.build import Build
    from flows.build_llm import build_flow
    from flows.terminal import Terminal

    with Terminal() as terminal:
        command = shlex.join(["glassworks", *sys.argv[1:]])
        build = Build(store, settings, terminal, command=command, specs=specs_until(until))
        return _finish(build, build_flow(build), terminal)


def rerun_command(
    store: Store, record: RunRecord, stage: str, with_downstream: bool, changes: list[str]
) -> int:
    """`glassworks rerun`: the same for one stage, or it and what follows."""
    prepare_prefect(store)
    from flows.build_llm import build_flow
    from flows.rerun_stage import rerun_build
    from flows.terminal import Terminal

    with Terminal() as terminal:
        build = rerun_build(store, record, stage, with_downstream, changes, terminal)
        return _finish(build, build_flow(build), terminal)


def _finish(build: Any, flow: Coroutine[Any, Any, Path], terminal: Any) -> int:
    from flows.build import essence_of

    code = 0
    try:
        asyncio.run(flow)
    except KeyboardInterrupt:
        terminal.say("stopped; the same command goes on from here")
        return 130
    except GlassworksError as error:
        terminal.say(f"error: {error}")
        code = error.exit_code
    record = build.record()
    terminal.say("")
    for line in essence_of(build.store, record):
        terminal.say(line)
    terminal.say(f"report: {build.store.root / 'runs' / record.run_id / 'report.html'}")
    return code


def specs_until(until: str | None) -> tuple[Any, ...]:
    """All stages, or `until` and those that it needs."""
    if until is None:
        return STAGES
    needed = {until}
    for spec in reversed(STAGES):
        if spec.name in needed:
            needed |= {read.stage for read in spec.reads.values()}
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


def chat_command(
    store: Store, record: RunRecord, model: str, compare: str, extra: Sequence[str]
) -> list[str]:
    """The command that starts the chat on a run's artifacts."""
    names = [name.strip() for name in compare.split(",") if name.strip()] or [model]
    folders = [_model_folder(store, record, name) for name in names]
    command = [sys.executable, "-m", "stages.agent_smoke.chat", "--model", str(folders[0])]
    for folder in folders[1:]:
        command += ["--compare", str(folder)]
    if "--no-tools" not in extra:
        command += ["--store", str(artifact_of(store, record, "vector_store").part("store"))]
        command += ["--documents", str(artifact_of(store, record, "corpus_prep").part("documents"))]
    return [*command, *extra]


def _model_folder(store: Store, record: RunRecord, name: str) -> Path:
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}", hint=f"models: {', '.join(MODELS)}")
    stage, part = MODELS[name]
    return artifact_of(store, record, stage).part(part)
