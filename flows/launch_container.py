"""Start a stage in a container: the same program, told the same, with the same events, errors and results.

The stage may write nothing but its own work folder. It leaves its artifact there, and we move it into the
store; stages/runtime/delivery.py tells how that stays atomic when one of the two is killed.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.container_run import Ended, no_gpu_runtime, run_container
from flows.container_spec import NOBODY, User, own_cores, request, user_of
from flows.containers_left import remove_containers
from flows.docker_engine import Engine, EngineFacts, Image
from flows.host_paths import HostRoots, host_roots, on_host, own_revision
from flows.image_locks import locked_packages
from flows.images import has_cpu_torch, holds_our_code, how_to_get, image_name, lacking
from flows.job import Job, OnEvent
from flows.stage_output import parse_event, stage_error
from flows.threads import held_in_thread, in_thread
from stages.runtime.delivery import take_delivery
from stages.runtime.errors import GlassworksError, StopRequested, UserError
from stages.runtime.lock import exclusive
from stages.runtime.provenance import git_commit
from stages.runtime.spec import Limits, Outside, StageSpec
from stages.runtime.store import Artifact, Store, write_durably

FIRST_SIGNAL = 128


class DockerBackend:
    """Stages as containers of the Docker Engine that DOCKER_HOST names, or the local one."""

    name = "docker"
    elsewhere = False

    def __init__(self, limits: Mapping[str, Limits] | None = None) -> None:
        self._limits = limits or {}

    @cached_property
    def _engine(self) -> Engine:
        return Engine()

    @cached_property
    def _facts(self) -> EngineFacts:
        return self._engine.facts()

    @cached_property
    def _roots(self) -> HostRoots:
        return host_roots(self._engine)

    @cached_property
    def _commit(self) -> str:
        return git_commit() or own_revision(self._engine)

    def packages(self, spec: StageSpec) -> Mapping[str, str]:
        """Those that its image was built with, by this checkout's locks."""
        return locked_packages(spec)

    async def check(self, to_run: Callable[[], Sequence[StageSpec]]) -> None:
        """The engine answers, every image is there with our code, and so are the GPUs that are required."""
        await in_thread(lambda: self._check(to_run()))

    def _check(self, specs: Sequence[StageSpec]) -> None:
        """One stage's lack is told in its own words; those of several together, not one a build."""
        images = {spec.name: self._engine.image(image_name(spec.name)) for spec in specs}
        if sum(image is None or not holds_our_code(image, stage) for stage, image in images.items()) > 1:
            found, remedy = lacking(images)
            raise UserError(f"images named like {image_name(specs[0].name)} are {found}", hint=remedy)
        for spec in specs:
            self._checked(spec, images[spec.name])

    async def clear(self, store: Store) -> None:
        """Remove containers that builds on this store have left behind."""
        await in_thread(lambda: remove_containers(self._engine, store=on_host(store.root, self._roots)))

    async def launch(self, job: Job, on_event: OnEvent) -> Artifact:
        """Run one stage in a container and return its artifact. Raises the stage's own error."""
        async with _alone(job, on_event):
            return await self._launch(job, on_event)

    async def _launch(self, job: Job, on_event: OnEvent) -> Artifact:
        if not job.force and (artifact := await _take(job, on_event)) is not None:
            return artifact  # made by a container whose controller did not live to take it
        image = await in_thread(lambda: self._image(job.spec))
        limits = self._limits.get(job.spec.name, job.spec.limits)
        asked = await in_thread(lambda: self._request(job, image, limits))
        _warn_of_cpu_torch(job.spec, image, self._facts, on_event)
        last_error: list[dict[str, Any]] = []

        def hear(line: bytes) -> None:
            event = parse_event(line)
            if event["event"] == "error":
                last_error[:] = [event]
            on_event(event)

        ended = await run_container(self._engine, asked, hear)
        if ended.exit_code != 0:
            raise container_error(job.spec, limits, ended, last_error[0] if last_error else None)
        artifact = await _take(job, on_event)
        if artifact is None:
            raise GlassworksError(f"{job.spec.name} ended well but left no whole artifact {job.fingerprint}")
        return artifact

    def _image(self, spec: StageSpec) -> Image:
        return self._checked(spec, self._engine.image(image_name(spec.name)))

    def _checked(self, spec: StageSpec, image: Image | None) -> Image:
        name = image_name(spec.name)
        if image is None:
            raise UserError(f"there is no image {name}", hint=how_to_get(name, spec.name))
        if not holds_our_code(image, spec.name):
            raise UserError(
                f"the image {name} holds other code or packages than this checkout",
                hint=f"glassworks images build {spec.name}",
            )
        if spec.gpu == "required" and not self._facts.has_gpus:
            raise no_gpu_runtime(spec.name)
        return image

    def _request(self, job: Job, image: Image, limits: Limits) -> Any:
        outside = job.spec.outside(job.config) if job.spec.outside else Outside()
        user = User.current()
        documents = prepare(job, outside, user_of(user, self._facts))
        return request(
            job,
            image_name(job.spec.name),
            image.digest,
            self._facts,
            user,
            limits=limits,
            outside=outside,
            documents=documents,
            commit=self._commit,
            cores=own_cores(self._facts),
            roots=self._roots,
        )


def prepare(job: Job, outside: Outside, user: str) -> dict[str, Path]:
    """Make what is to be mounted; returns where each document lies. What can be written belongs to `user`."""
    job.work.mkdir(parents=True, exist_ok=True)
    write_durably(job.settings, job.config.model_dump_json(indent=1))
    job.lock.touch()
    documents = {}
    for number, (place, text) in enumerate(outside.documents.items()):
        documents[place] = job.work.with_name(f"{job.fingerprint}.document-{number}")
        write_durably(documents[place], text)
    if user == NOBODY:  # only root starts stages as somebody else, and only root may do this
        uid, gid = map(int, NOBODY.split(":"))
        for path in [job.lock, job.work, *job.work.rglob("*")]:
            os.chown(path, uid, gid, follow_symlinks=False)
    return documents


def _say_later(on_event: OnEvent) -> Callable[[str], None]:
    """Logs a line from another thread."""
    loop = asyncio.get_running_loop()

    def say(message: str) -> None:
        event = {"event": "log", "level": "info", "message": message}
        loop.call_soon_threadsafe(on_event, event)

    return say


@asynccontextmanager
async def _alone(job: Job, on_event: OnEvent) -> AsyncIterator[None]:
    """Wait while another build has a container at the same artifact, and keep others waiting.

    The stage's own lock comes too late: the first build clears the work folder away, and a second container
    that waits inside for the lock would have it mounted.
    """
    say, path = _say_later(on_event), job.lock.with_name(f"{job.fingerprint}.container.lock")
    async with held_in_thread(lambda should_stop: exclusive(path, say, should_stop)):
        yield


async def _take(job: Job, on_event: OnEvent) -> Artifact | None:
    """Move what the stage delivered into the store, if it did."""
    stop, say = threading.Event(), _say_later(on_event)

    def take() -> Artifact | None:
        return take_delivery(job.store, job.spec.name, job.fingerprint, say, stop.is_set)

    try:
        return await in_thread(take)
    finally:
        stop.set()


def container_error(
    spec: StageSpec, limits: Limits, ended: Ended, event: dict[str, Any] | None
) -> GlassworksError:
    """The stage's own error, or what ended it from outside."""
    if ended.out_of_memory:
        more = 2 * limits.memory_gib
        return UserError(
            f"{spec.name} needed more than its {limits.memory_gib:g} GiB of memory and was killed",
            hint=f"give it more: --limit {spec.name}.memory_gib={more:g}; what it has done so far is kept",
        )
    code = ended.exit_code
    if event is None and code > FIRST_SIGNAL and code != StopRequested.exit_code:
        code = FIRST_SIGNAL - code  # as a process would have ended
    return stage_error(spec, code, event, ended.errors)


def _warn_of_cpu_torch(spec: StageSpec, image: Image, facts: EngineFacts, on_event: OnEvent) -> None:
    if spec.gpu != "none" and facts.has_gpus and has_cpu_torch(image):
        message = (
            "there is a GPU, but the image has torch for processors: glassworks images build --torch cuda"
        )
        on_event({"event": "log", "level": "warning", "message": message})
