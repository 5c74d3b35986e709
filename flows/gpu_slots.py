"""One stage at a time on each GPU of a host, whichever builds the stages belong to.

Two things hold GPUs. A concurrency limit of the Prefect server, named after the host, makes stages queue
where the UI shows it. Lock files say which GPUs they are; the kernel drops them with the process that holds
them. A stage that asks for several takes them all at once or none, slots and locks alike, so that two builds
never wait for what the other holds. Of a build that was killed, the limit stays taken until its lease ends:
60 s, the least that Prefect allows (its default is 300 s). By then the stage itself has noticed too and has
given up the GPUs.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.gpus import GPU_VARIABLE, gpus_to_hold, visible_gpus
from stages.runtime.spec import StageConfig, StageSpec

SERVER_AWAY = (httpx.HTTPError, OSError, ConcurrencySlotAcquisitionError)
LEASE_SECONDS = 60.0
PATIENCE_SECONDS = 2.0
POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""How often to look whether a limit that is too low was raised."""
CHOICE = "choice"
"""The lock of who is choosing GPUs; held for an instant."""


@dataclass(frozen=True)
class _Wanted:
    """Who waits, for how many of how many GPUs, and whom to tell."""

    stage: str
    count: int
    num_visible: int
    say: Callable[[str], None]

    def tell(self) -> None:
        """Say that it waits, and for what."""
        gpus = "a GPU" if self.count == 1 else f"{self.count} GPUs at once"
        self.say(f"  {self.stage:<15} waits for {gpus} (limit {limit_name()!r} of the Prefect server)")


def limit_name() -> str:
    """The concurrency limit of this host's GPUs."""
    return f"gpu on {socket.gethostname()}"


@asynccontextmanager
async def gpu_slot(
    spec: StageSpec, config: StageConfig, say: Callable[[str], None]
) -> AsyncIterator[Mapping[str, str]]:
    """Wait for as many GPUs as the settings ask for, and hold them; gives the environment that names them.

    A stage without GPU never waits, nor does any on a host without. Raises UserError for more than there are.
    """
    gpus = visible_gpus()
    if not (count := gpus_to_hold(spec, config, gpus)):
        yield {}
        return
    wanted = _Wanted(spec.name, count, len(gpus), say)
    waiting = asyncio.create_task(_tell_wait(wanted))
    try:
        async with _turn(wanted, waiting):
            with ExitStack() as held:
                mine = await _free_gpus(gpus, count, held)
                waiting.cancel()
                yield {GPU_VARIABLE: ",".join(mine)}
    finally:
        waiting.cancel()


@asynccontextmanager
async def _turn(wanted: _Wanted, waiting: asyncio.Task[None]) -> AsyncIterator[None]:
    """Hold slots of the limit. Where the server is away the host's locks alone decide, and nothing fails."""
    try:
        turn = await _slots(wanted, waiting)
    except SERVER_AWAY:
        wanted.say("warning: the Prefect server does not answer: only the GPU locks of this host count")
        yield
        return
    try:
        yield
    finally:
        with suppress(*SERVER_AWAY):
            await turn.__aexit__(None, None, None)


async def _slots(wanted: _Wanted, waiting: asyncio.Task[None]) -> AbstractAsyncContextManager[None]:
    """Slots that are taken. The server refuses a request for more than the limit has instead of keeping it
    waiting, so we wait until somebody has raised the limit."""
    while True:
        await _high_enough(wanted, waiting)
        # Not strict: a server that is away for a while must not end a stage that runs.
        turn = concurrency(limit_name(), occupy=wanted.count, lease_duration=LEASE_SECONDS, strict=False)
        try:
            await turn.__aenter__()
        except ConcurrencySlotAcquisitionError:
            if await _limit(wanted.num_visible) >= wanted.count:
                raise
        else:
            return turn


async def _high_enough(wanted: _Wanted, waiting: asyncio.Task[None]) -> None:
    """Wait while the limit is lower than what is wanted, and say so each time that it is changed."""
    told = None
    while (limit := await _limit(wanted.num_visible)) < wanted.count:
        if limit != told:
            waiting.cancel()  # it would say that a GPU is not free, which is not why
            told = limit
            wanted.say(
                f"  {wanted.stage:<15} waits: the limit {limit_name()!r} of the Prefect server is {limit}, "
                f"and it needs {wanted.count}; raise it in the UI under Concurrency"
            )
        await asyncio.sleep(LOOK_SECONDS)
    if told is not None:
        wanted.tell()


async def _limit(num_gpus: int) -> int:
    """How many slots there are. Makes the limit where there is none; one that somebody changed in the UI is
    left as it is, and one that is switched off there limits nobody."""
    async with get_client() as client:
        try:
            found = await client.read_global_concurrency_limit_by_name(limit_name())
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):
                made = GlobalConcurrencyLimitCreate(name=limit_name(), limit=num_gpus)
                await client.create_global_concurrency_limit(made)
            return num_gpus
    return found.limit if found.active else num_gpus


async def _free_gpus(gpus: Sequence[str], count: int, held: ExitStack) -> list[str]:
    """Wait until so many are free at once. One build at a time chooses: of two that each took a part and
    gave it back, neither might ever get all."""
    while True:
        with suppress(BlockingIOError), _locked(CHOICE):
            if len(found := _take(gpus, count, held)) == count:
                return found
        await asyncio.sleep(POLL_SECONDS)


def _take(gpus: Sequence[str], count: int, held: ExitStack) -> list[str]:
    """The first so many that are free, held from now on; where there are fewer, none is kept."""
    found: list[str] = []
    with ExitStack() as taken:
        for gpu in gpus:
            if len(found) == count:
                break
            with suppress(BlockingIOError):
                taken.enter_context(_locked(gpu))
                found.append(gpu)
        if len(found) == count:
            held.enter_context(taken.pop_all())
    return found


@contextmanager
def _locked(gpu: str) -> Iterator[None]:
    """Hold a GPU's lock. Raises BlockingIOError while somebody else does."""
    with (Path(tempfile.gettempdir()) / f"glassworks-gpu-{gpu.replace('/', '_')}.lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


async def _tell_wait(wanted: _Wanted) -> None:
    await asyncio.sleep(PATIENCE_SECONDS)
    wanted.tell()
