"""Two builds want the same artifact from containers: one starts one, the other waits. Needs no engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flows.job import Job, OnEvent
from flows.launch_container import DockerBackend
from stages.runtime.fingerprint import key_parts
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Artifact, Store


class Config(StageConfig):
    """No settings."""


SPEC = StageSpec(name="probe", version=1, config=Config, writes={})


class Recorded(DockerBackend):
    """Notes when it would have a container, and keeps that until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []
        self.may_end = asyncio.Event()

    async def _launch(self, job: Job, on_event: OnEvent) -> Artifact:
        self.noted.append("begin")
        await self.may_end.wait()
        self.noted.append("end")
        return Artifact(job.work, None)  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(SPEC, Config(), key_parts(SPEC, Config(), {}), {}, Store(tmp_path))


async def until_it_waits(events: list[dict[str, Any]]) -> None:
    async with asyncio.timeout(20):
        while not any("waiting for another build" in event["message"] for event in events):
            await asyncio.sleep(0.01)


def test_the_second_says_that_it_waits_and_begins_when_the_first_has_ended(job: Job) -> None:
    async def two() -> list[str]:
        backend, events = Recorded(), []
        tasks = [asyncio.create_task(backend.launch(job, events.append)) for _ in range(2)]
        await until_it_waits(events)
        assert backend.noted == ["begin"]
        backend.may_end.set()
        await asyncio.gather(*tasks)
        return backend.noted

    assert asyncio.run(two()) == ["begin", "end", "begin", "end"]


def test_one_that_is_cancelled_while_it_waits_leaves_the_way_free(job: Job) -> None:
    async def three() -> list[str]:
        backend, events = Recorded(), []
        first = asyncio.create_task(backend.launch(job, lambda _: None))
        while not backend.noted:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(backend.launch(job, events.append))
        await until_it_waits(events)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        backend.may_end.set()
        await first
        async with asyncio.timeout(20):
            await backend.launch(job, lambda _: None)
        return backend.noted

    assert asyncio.run(three()) == ["begin", "end", "begin", "end"]
