"""Start a stage as a process of its own, listen to it, and stop it in good order.

The stage runs in its own session, so a Ctrl-C in the terminal reaches only us: we pass it on as SIGTERM and
wait for the checkpoint. It holds a pipe from us as its standard input; when we die, even by `kill -9`, the
pipe ends and the stage stops by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.job import Job, OnEvent
from flows.stage_output import parse_event, stage_error
from stages.runtime.errors import GlassworksError, UserError
from stages.runtime.fingerprint import REPOSITORY, installed_packages
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store, write_durably

GRACE_SECONDS = 25.0
STOP_POLL_SECONDS = 0.05
LINE_LIMIT_BYTES = 16 * 2**20
NEEDED_PACKAGE = {"data": "duckdb", "torch": "torch", "vector": "chromadb"}
"""Image family of a stage -> what none of its kind can do without."""


class ProcessBackend:
    """Stages as processes of this machine and this Python."""

    name = "process"
    elsewhere = False

    def packages(self, spec: StageSpec) -> Mapping[str, str]:
        """Those that are installed here."""
        return installed_packages(spec.name)

    async def check(self, to_run: Callable[[], Sequence[StageSpec]]) -> None:
        """This Python has what the stages import. Raises UserError where it has not, as in the flow image."""
        missing = {image: package for image, package in NEEDED_PACKAGE.items() if find_spec(package) is None}
        for spec in to_run() if missing else ():  # what is to run takes a plan, which reads every artifact
            if spec.image in missing:
                raise UserError(
                    f"{spec.name} needs {missing[spec.image]}, which {sys.executable} does not have",
                    hint=f"{sys.executable} -m pip install '.[{spec.image}]' in the checkout; or each stage "
                    "in a container of its own: --backend docker (a deployment's parameter backend: docker)",
                )

    async def launch(self, job: Job, on_event: OnEvent) -> Artifact:
        """Run one stage as a process and return its artifact. Raises the stage's own error."""
        return await launch(job, on_event)

    async def clear(self, store: Store) -> None:
        """A stage whose controller is gone ends by itself and leaves nothing."""


async def launch(job: Job, on_event: OnEvent) -> Artifact:
    """Run one stage as a process and return its artifact. Raises the stage's own error."""
    process = await asyncio.create_subprocess_exec(
        *_command(job),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env=_environment() | dict(job.environment),
        start_new_session=True,
        limit=LINE_LIMIT_BYTES,
    )
    _give_way(process.pid, job.niceness)
    try:
        last_error, errors = await _listen(process, on_event)
        code = await process.wait()
    except BaseException:
        await _stop(process)
        raise
    if code != 0:
        raise stage_error(job.spec, code, last_error, errors)
    artifact = job.store.find(job.spec.name, job.fingerprint)
    if artifact is None:
        raise GlassworksError(f"{job.spec.name} ended well but left no whole artifact {job.fingerprint}")
    return artifact


def _give_way(pid: int, niceness: int) -> None:
    """Lower a stage's priority. Linux shares the cores among sessions before it looks at processes
    (autogroups), and every stage is a session of its own: the session must be nice, not only the process."""
    if niceness:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, niceness)
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")


def entry_point(spec: StageSpec) -> list[str]:
    """What starts the stage's program, before its options."""
    return [sys.executable, "-m", f"stages.{spec.name}"]


def _command(job: Job) -> list[str]:
    write_durably(job.settings, job.config.model_dump_json(indent=1))
    return [*entry_point(job.spec), *job.options(job.store.artifact_dir(job.spec.name, job.fingerprint))]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": "1"}


async def _listen(
    process: asyncio.subprocess.Process, on_event: OnEvent
) -> tuple[dict[str, Any] | None, str]:
    """Forward events until the stage closes its output; the last error event and what it wrote to stderr."""
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    last_error: dict[str, Any] | None = None
    async for line in process.stdout:
        event = parse_event(line)
        if event["event"] == "error":
            last_error = event
        on_event(event)
    return last_error, (await errors).decode("utf-8", "replace")


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, time for the checkpoint, SIGKILL.

    Whoever cancels a flow often does so twice (Prefect on SIGTERM, asyncio when it shuts down): that must not
    cost the checkpoint, so further cancellations are waited out.
    """
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while process.returncode is None and time.monotonic() < deadline:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(STOP_POLL_SECONDS)
        if process.returncode is None:
            process.kill()
