"""Run one container: its lease, its output, its end.

The lease is its standard input, whose other end we hold. When we die, even by `kill -9`, the kernel closes
our end, the engine closes the container's, and the stage saves its checkpoint and stops. The engine removes
it then. When the engine dies, its end stays open: the container's shim holds it for an engine that comes
back. Then we stop the stage ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils.socket import STDERR, frames_iter
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from flows.container_spec import Request
from flows.docker_engine import BY_PROCESS, Engine, in_our_words
from flows.threads import in_thread, undisturbed
from stages.runtime.errors import GlassworksError, RetryableError, UserError

GRACE_SECONDS = 25
KILLED = 137
ERROR_TAIL_BYTES = 64 * 2**10
"""Last words that are kept for an error message."""
INSTALL_GPU_RUNTIME = (
    "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker "
    "&& sudo systemctl restart docker"
)


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    exit_code: int
    out_of_memory: bool
    errors: str
    """What it wrote to stderr, the end of it."""


async def run_container(engine: Engine, asked: Request, on_line: Callable[[bytes], None]) -> Ended:
    """Create, start, hear and remove one container. GlassworksError where the engine will not or is gone.

    When the task is cancelled, the container is asked to stop and gets time for its checkpoint.
    """
    loop = asyncio.get_running_loop()

    def hear(line: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
            loop.call_soon_threadsafe(on_line, line)

    creating = in_thread(lambda: _create(engine, asked))
    try:
        container = await asyncio.shield(creating)  # a future that is awaited is cancelled with its task
        lease, events = await in_thread(lambda: _attach(engine, container))
        ending = in_thread(lambda: _await_end(events))
        output = in_thread(lambda: _read(lease, hear))
        await in_thread(lambda: _start(engine, container))
        code, out_of_memory = await ending
        return Ended(code, out_of_memory, await output)
    finally:
        await undisturbed(creating)
        if creating.exception() is None:
            await undisturbed(in_thread(lambda: stop_and_remove(engine, creating.result())))


def _create(engine: Engine, asked: Request) -> str:
    with in_our_words():
        host = engine.api.create_host_config(**asked.host)
        try:
            return str(engine.api.create_container(**asked.container, host_config=host)["Id"])
        except ImageNotFound:
            name = asked.container["image"]
            raise UserError(f"the image {name} has just gone", hint="glassworks images build") from None


def _attach(engine: Engine, container: str) -> tuple[Any, Iterator[dict[str, Any]]]:
    """Before the start: what is said first must not be missed, and without the lease nothing may run."""
    with in_our_words():
        wanted = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        lease = engine.api.attach_socket(container, params=wanted)
        getattr(lease, "_sock", lease).settimeout(None)  # a stage may be silent for longer than any request
        events = engine.api.events(filters={"container": [container], "type": ["container"]}, decode=True)
    return lease, events


def _start(engine: Engine, container: str) -> None:
    try:
        with in_our_words():
            engine.api.start(container)
    except GlassworksError as error:
        if "could not select device driver" in error.message:
            raise no_gpu_runtime("this stage") from None
        raise


def no_gpu_runtime(stage: str) -> UserError:
    """A GPU is wanted, and the engine cannot give one to a container."""
    return UserError(
        f"{stage} needs a GPU, and the Docker Engine has no NVIDIA runtime",
        hint=f"{INSTALL_GPU_RUNTIME}; {BY_PROCESS}",
    )


def _await_end(events: Iterator[dict[str, Any]]) -> tuple[int, bool]:
    """Exit code, and whether the memory limit was hit. Blocks until the container is gone."""
    code, out_of_memory = None, False
    try:
        for event in events:
            action = event.get("Action")
            out_of_memory |= action == "oom"
            if action == "die":
                code = int(event["Actor"]["Attributes"]["exitCode"])
            # The engine tells of the memory in its own time: sometimes after the end.
            if action == "destroy" or (action == "die" and (out_of_memory or code != KILLED)):
                break
    except (DockerException, RequestException, HTTPError, OSError, ValueError):
        pass
    if code is None:
        raise RetryableError(
            "the Docker Engine has gone while the stage ran; its last checkpoint is kept",
            hint="start the engine (sudo systemctl start docker) and build again to go on",
        )
    return code, out_of_memory


def _read(lease: Any, hear: Callable[[bytes], None]) -> str:
    """Pass on each line of its output; returns the end of what it wrote to stderr."""
    pending, errors = b"", b""
    with contextlib.suppress(OSError, ValueError):
        for stream, data in frames_iter(lease, tty=False):  # type: ignore[no-untyped-call]
            if stream == STDERR:
                errors = (errors + data)[-ERROR_TAIL_BYTES:]
                continue
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                hear(line)
    if pending:
        hear(pending)
    lease.close()
    return errors.decode("utf-8", "replace")


def stop_and_remove(engine: Engine, container: str, grace_seconds: int = GRACE_SECONDS) -> None:
    """SIGTERM, time for the checkpoint, SIGKILL. What never started is there all the same."""
    try:
        engine.api.stop(container, timeout=grace_seconds)
    except APIError:
        pass
    except RequestException:
        if (pid := _first_process(container)) is not None:
            stop_without_engine(pid, grace_seconds)
    with contextlib.suppress(APIError, RequestException):
        engine.api.remove_container(container, force=True)


def _first_process(container: str) -> int | None:
    """The pid of a container's process 1, where it runs on this machine and is seen from here."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if container in (process / "cgroup").read_text():
                ids = re.search(r"^NSpid:.*\s(\d+)$", (process / "status").read_text(), re.MULTILINE)
                if ids and ids[1] == "1":
                    return int(process.name)
    return None


def stop_without_engine(pid: int, grace_seconds: float) -> None:
    """The same by the kernel alone: SIGTERM, time for the checkpoint, SIGKILL."""
    with contextlib.suppress(OSError):  # it has just ended, or is not ours to stop
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            ended, _, _ = select.select([process], [], [], grace_seconds)
            if not ended:
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
