"""Start a stage as a process of its own, listen to it, and stop it in good order.

The stage runs in its own session, so a Ctrl-C in the terminal reaches only us: we pass it on as SIGTERM and
wait for the checkpoint. It holds a pipe from us as its standard input; when we die, even by `kill -9`, the
pipe ends and the stage stops by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_contracts.manifest import KeyParts
from stages.runtime.errors import (
    ContractError,
    GlassworksError,
    RetryableError,
    StopRequested,
    UserError,
)
from stages.runtime.fingerprint import REPOSITORY, fingerprint
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Artifact, Store, write_durably

GRACE_SECONDS = 25.0
STOP_POLL_SECONDS = 0.05
LINE_LIMIT_BYTES = 16 * 2**20
_ERRORS = {kind.exit_code: kind for kind in (UserError, ContractError, RetryableError, StopRequested)}

OnEvent = Callable[[dict[str, Any]], None]


async def launch(
    spec: StageSpec,
    config: StageConfig,
    key: KeyParts,
    inputs: Mapping[str, Path],
    store: Store,
    on_event: OnEvent,
    *,
    force: bool = False,
    niceness: int = 0,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Artifact:
    """Run one stage as a process and return its artifact. Raises the stage's own error."""
    print_ = fingerprint(key)
    command = _command(spec, config, print_, inputs, store) + (["--force"] if force else [])
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env=_environment() | dict(environment),
        start_new_session=True,
        limit=LINE_LIMIT_BYTES,
    )
    _give_way(process.pid, niceness)
    try:
        last_error, errors = await _listen(process, on_event)
        code = await process.wait()
    except BaseException:
        await _stop(process)
        raise
    if code != 0:
        raise _error(spec, code, last_error, errors)
    artifact = store.find(spec.name, print_)
    if artifact is None:
        raise GlassworksError(f"{spec.name} ended well but left no whole artifact {print_}")
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


def _command(
    spec: StageSpec, config: StageConfig, print_: str, inputs: Mapping[str, Path], store: Store
) -> list[str]:
    work = store.work_dir(spec.name, print_)
    settings = work.with_name(f"{print_}.config.json")
    write_durably(settings, config.model_dump_json(indent=1))
    command = [*entry_point(spec), "--config", str(settings)]
    command += ["--output", str(store.artifact_dir(spec.name, print_)), "--work", str(work)]
    command += ["--expect", print_, "--events", "json", "--lease", "stdin"]
    for role, folder in inputs.items():
        command += ["--input", f"{role}={folder}"]
    return command


def _environment() -> dict[str, str]:
    # Stages run side by side: a thread that waits must sleep, or it keeps the others from their cores.
    return os.environ | {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}


async def _listen(
    process: asyncio.subprocess.Process, on_event: OnEvent
) -> tuple[dict[str, Any] | None, str]:
    """Forward events until the stage closes its output; the last error event and what it wrote to stderr."""
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    last_error: dict[str, Any] | None = None
    async for line in process.stdout:
        event = _parse(line)
        if event["event"] == "error":
            last_error = event
        on_event(event)
    return last_error, (await errors).decode("utf-8", "replace")


def _parse(line: bytes) -> dict[str, Any]:
    text = line.decode("utf-8", "replace").rstrip()
    with contextlib.suppress(ValueError):
        event = json.loads(text)
        if isinstance(event, dict) and "event" in event:
            return event
    return {"event": "log", "level": "info", "message": text}


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


def _error(spec: StageSpec, code: int, event: dict[str, Any] | None, errors: str) -> GlassworksError:
    kind = _ERRORS.get(code, GlassworksError)
    if event is not None:
        trace = f"\n{errors.strip()}" if "Traceback" in errors else ""
        return kind(f"{event['message']}{trace}", hint=event.get("hint", ""))
    if code < 0:
        name = signal.Signals(-code).name
        hint = "the machine may be out of memory: see `glassworks doctor`; build again to go on"
        return RetryableError(f"{spec.name} was killed by {name}", hint=hint)
    last = "\n".join(errors.strip().splitlines()[-12:])
    return kind(
        f"{spec.name} ended with exit code {code}\n{last}", hint=f"python -m stages.{spec.name} --help"
    )
