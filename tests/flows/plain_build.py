"""A build of the five dummy stages without Prefect and without a process per stage.

python plain_build.py STORE [--set STAGE.FIELD=JSON] [--force STAGE] [--until STAGE] [--hours-ahead N]
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dummy_stages

from flows import signing_clock
from flows.build import Build
from flows.job import Job, OnEvent
from flows.settings import BuildSettings
from flows.stage_output import stage_error
from flows.stores import open_store
from stages.runtime.errors import GlassworksError
from stages.runtime.fingerprint import installed_packages
from stages.runtime.main import main as stage_main
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store, write_durably

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Printer:
    """Tells everything, one line each."""

    def __init__(self, tell: Callable[[str], None] = lambda text: print(text, flush=True)) -> None:
        self.say = tell

    def started(self, stage: str, reasons: tuple[str, ...]) -> None:
        self.say(f"{stage} RUN {'; '.join(reasons)}")

    def event(self, stage: str, event: dict[str, Any]) -> None: ...

    def finished(self, stage: str, outcome: str, seconds: float, note: str) -> None:
        self.say(f"{stage} {outcome} {note}")

    def overall(self, text: str) -> None: ...


class InlineBackend:
    """Runs a stage where it is called."""

    name = "inline"
    elsewhere = False

    def packages(self, spec: StageSpec) -> Mapping[str, str]:
        """As the stage itself finds them."""
        return installed_packages(spec.name)

    async def check(self, to_run: Callable[[], Sequence[StageSpec]]) -> None: ...

    async def clear(self, store: Store) -> None: ...

    async def launch(self, job: Job, on_event: OnEvent) -> Artifact:
        """Run it, with all that a stage's program does."""
        write_durably(job.settings, job.config.model_dump_json())
        output = job.store.artifact_dir(job.spec.name, job.fingerprint)
        options = [option.replace("stdin", "none") for option in job.options(output)]
        handlers = [signal.getsignal(number) for number in HANDLED]
        try:
            stage_main(job.spec, dummy_stages.run, options)
        except SystemExit as end:
            if end.code:
                raise stage_error(job.spec, int(str(end.code)), None, "") from None
        finally:
            for number, handler in zip(HANDLED, handlers, strict=True):
                signal.signal(number, handler)
        return Artifact(output, job.store.find(job.spec.name, job.fingerprint).manifest)  # type: ignore[union-attr]


def prepared(store: Store, options: Sequence[str], tell: Callable[[str], None] | None = None) -> Build:
    """The build that the options ask for."""
    asked = list(zip(options[::2], options[1::2], strict=True))
    changes: dict[str, dict[str, Any]] = {}
    for change in (value for name, value in asked if name == "--set"):
        field, _, value = change.partition("=")
        stage, _, field = field.partition(".")
        changes.setdefault(stage, {})[field] = json.loads(value)
    specs = dummy_stages.STAGES
    for stage in (value for name, value in asked if name == "--until"):
        specs = specs[: [spec.name for spec in specs].index(stage) + 1]
    configs = {spec.name: dummy_stages.DummyConfig(**changes.get(spec.name, {})) for spec in specs}
    force = frozenset(value for name, value in asked if name == "--force")
    audience = Printer(tell) if tell else Printer()
    settings = BuildSettings("dummy", configs, force)
    # Several builds a second: the usual names would not sort by time.
    name = f"run-{time.time_ns()}"
    return Build(store, settings, audience, specs=specs, backend=InlineBackend(), run_id=name)


async def run(build: Build) -> None:
    """All stages in order; then the record, as the flows do."""
    try:
        for spec in build.specs:
            await build.stage(spec, lambda event: None)
    finally:
        await asyncio.to_thread(build.write_report)


def set_clock(hours_ahead: float) -> None:
    """Make this host's clock wrong."""
    signing_clock.host_now = lambda: datetime.now(UTC) + timedelta(hours=hours_ahead)


def main(store: str, *options: str) -> None:
    """Build, and end with the exit code of what went wrong."""
    if "--hours-ahead" in options:
        set_clock(float(options[options.index("--hours-ahead") + 1]))
    try:
        asyncio.run(run(prepared(open_store(store), options)))
    except GlassworksError as error:
        print(f"error: {error}", flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
