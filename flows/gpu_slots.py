"""One stage at a time on each GPU of a host, whichever builds the stages belong to.

Two things hold a GPU. A concurrency limit of the Prefect server, named after the host, makes stages queue
where the UI shows it. A lock file says which GPU it is; the kernel drops it with the process that holds it.
Of a build that was killed, the limit stays taken until its lease ends: 60 s, the least that Prefect allows
(its default is 300 s). By then the stage itself has noticed too and has given up the GPU.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from stages.runtime.spec import StageSpec

SERVER_AWAY = (httpx.HTTPError, OSError, ConcurrencySlotAcquisitionError)
LEASE_SECONDS = 60.0
PATIENCE_SECONDS = 2.0
POLL_SECONDS = 0.5


def visible_gpus() -> list[str]:
    """The GPUs that stages may use: what CUDA_VISIBLE_DEVICES names, else every NVIDIA device."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    devices = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(devices, key=int)


def limit_name() -> str:
    """The concurrency limit of this host's GPUs."""
    return f"gpu on {socket.gethostname()}"


@asynccontextmanager
async def gpu_slot(spec: StageSpec, say: Callable[[str], None]) -> AsyncIterator[Mapping[str, str]]:
    """Wait for a GPU and hold it; gives the environment that names it. A stage without GPU never waits."""
    gpus = visible_gpus() if spec.gpu != "none" else []
    if not gpus:
        yield {}
        return
    waiting = asyncio.create_task(_tell_wait(spec.name, say))
    try:
        async with _turn(len(gpus), say):
            with ExitStack() as held:
                gpu = await _free_gpu(gpus, held)
                waiting.cancel()
                yield {"CUDA_VISIBLE_DEVICES": gpu}
    finally:
        waiting.cancel()


@asynccontextmanager
async def _turn(num_gpus: int, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold a slot of the limit. Where the server is away the host's locks alone decide, and nothing fails."""
    # Not strict: a server that is away for a while must not end a stage that runs.
    turn = concurrency(limit_name(), lease_duration=LEASE_SECONDS, strict=False)
    try:
        await _make_limit(num_gpus)
        await turn.__aenter__()
    except SERVER_AWAY:
        say("warning: the Prefect server does not answer: only the GPU locks of this host count")
        yield
        return
    try:
        yield
    finally:
        with suppress(*SERVER_AWAY):
            await turn.__aexit__(None, None, None)


async def _make_limit(num_gpus: int) -> None:
    """Make the limit where there is none; one that somebody changed in the UI is left as it is."""
    async with get_client() as client:
        try:
            await client.read_global_concurrency_limit_by_name(limit_name())
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):
                made = GlobalConcurrencyLimitCreate(name=limit_name(), limit=num_gpus)
                await client.create_global_concurrency_limit(made)


async def _free_gpu(gpus: list[str], held: ExitStack) -> str:
    while True:
        for gpu in gpus:
            with suppress(BlockingIOError):
                held.enter_context(_locked(gpu))
                return gpu
        await asyncio.sleep(POLL_SECONDS)


@contextmanager
def _locked(gpu: str) -> Iterator[None]:
    """Hold a GPU's lock. Raises BlockingIOError while somebody else does."""
    with (Path(tempfile.gettempdir()) / f"glassworks-gpu-{gpu.replace('/', '_')}.lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


async def _tell_wait(stage: str, say: Callable[[str], None]) -> None:
    await asyncio.sleep(PATIENCE_SECONDS)
    say(f"  {stage:<15} waits for a GPU (limit {limit_name()!r} of the Prefect server)")
