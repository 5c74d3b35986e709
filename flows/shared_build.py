"""What a build does beside building where its store is shared: bring inputs, claim stages, publish.

For a store that is not shared nothing of it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from flows.claims import Claim
from flows.job import Job
from flows.shared_store import SharedStore
from flows.stores import shared
from flows.threads import in_thread, undisturbed
from stages.runtime.errors import GlassworksError, RetryableError
from stages.runtime.store import Artifact, Store, read_manifest

Say = Callable[[str], None]
Launch = Callable[[Job], Awaitable[Artifact]]
Result = TypeVar("Result")


class Sharing:
    """One build's dealings with a store that other hosts may use too."""

    def __init__(self, store: Store, say: Say, elsewhere: bool = False) -> None:
        """`elsewhere`: other hosts run the stages, and it is they who bring inputs, claim and publish."""
        self._store = shared(store)
        self._elsewhere = elsewhere
        self._say = say
        self._here: set[str] = set()
        """What was found whole in the local folder since this build began; not hashed a second time."""

    async def settled(self, artifact: Artifact) -> Artifact:
        """A hit as every host sees it: sent, if only this host had it so far; returns the one that counts."""
        place = self._store
        if place is None or read_manifest(artifact.folder) != artifact.manifest:
            return artifact
        return await self._blocking(lambda say, stop: place.publish(artifact, say=say, should_stop=stop))

    async def at_hand(self, artifact: Artifact) -> Artifact:
        """The artifact with its files here. Raises DamagedError where it must be made again."""
        place = self._store
        if place is None or self._elsewhere or _name(artifact) in self._here:
            return artifact
        brought = await self._blocking(lambda say, stop: place.bring(artifact, say, stop))
        self._here.add(_name(brought))
        return brought

    async def make(self, job: Job, launch: Launch) -> tuple[Artifact, bool]:
        """Run a stage unless another host does; the artifact, and whether it was made here.

        While another host is making it, waits. Whoever loses its claim, because it was not renewed for so
        long, stops its stage with a checkpoint and waits for the other.
        """
        place = self._store
        if place is None or self._elsewhere:
            return await launch(job), True
        while True:
            async with self._claimed(place, f"{job.spec.name}/{job.fingerprint}") as lost:
                if (made := await self._make_claimed(place, job, launch, lost)) is not None:
                    return made
            self._say(f"{job.spec.name}: another host has taken over; stopped here, waiting for it")

    async def _make_claimed(
        self, place: SharedStore, job: Job, launch: Launch, lost: asyncio.Event
    ) -> tuple[Artifact, bool] | None:
        """One attempt while we have the claim; None where we lost it."""
        stage, key = job.spec.name, job.fingerprint
        before = await self._blocking(lambda say, stop: place.published(stage, key))
        if before is not None and not before.missing and not job.force:
            return await self.at_hand(Artifact(place.artifact_dir(stage, key), before.manifest)), False
        artifact = await self._until_lost(launch(job), lost)
        if artifact is None:
            return None
        replaces = before.etag if before is not None else None
        made = await self._blocking(lambda say, stop: place.publish(artifact, replaces, say, stop))
        self._here.add(_name(made))
        return made, True

    @asynccontextmanager
    async def _claimed(self, place: SharedStore, name: str) -> AsyncIterator[asyncio.Event]:
        """Hold a claim; the event is set when another host has taken it over."""
        loop, lost = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(lost.set)

        acquired: list[Claim] = []
        try:
            await self._blocking(
                lambda say, stop: acquired.append(place.claims.acquire(name, say, stop, tell))
            )
            yield lost
        finally:
            for claim in acquired:
                await undisturbed(in_thread(lambda: place.claims.release(claim)))  # noqa: B023

    async def _until_lost(self, work: Awaitable[Artifact], lost: asyncio.Event) -> Artifact | None:
        """What the stage made; None where it was stopped because the claim was lost."""
        running = asyncio.ensure_future(work)
        running.add_done_callback(lambda done: done.cancelled() or done.exception())  # may never be asked for
        watching = asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            return None
        finally:
            watching.cancel()
            running.cancel()
            await undisturbed(running)

    async def _blocking(self, work: Callable[[Say, Callable[[], bool]], Result]) -> Result:
        """Run what blocks in a thread; when we are cancelled it is told to stop, and waited for."""
        stop, loop = threading.Event(), asyncio.get_running_loop()

        def say(text: str) -> None:
            loop.call_soon_threadsafe(self._say, text)

        future = in_thread(lambda: work(say, stop.is_set))
        try:
            await asyncio.wait({future})
        finally:
            stop.set()
            await undisturbed(future)
        try:
            return future.result()
        except InterruptedError as error:  # nobody asked us to stop, so the system did
            raise RetryableError(str(error), hint="build again to go on") from error


def _name(artifact: Artifact) -> str:
    return f"{artifact.manifest.stage}/{artifact.manifest.fingerprint}"


def shared_record(store: Store, run_id: str, say: Say) -> None:
    """Send the run's record and report; a store that is away costs nothing but a warning."""
    place = shared(store)
    if place is None:
        return
    try:
        place.share_run(run_id)
    except GlassworksError as error:
        say(f"warning: other hosts do not see this run yet: {error.message}; the next build sends its record")
