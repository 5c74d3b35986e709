"""Stages that other hosts run: what travels, what comes back, and what happens when a host is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling

from flows import launch, run_stage, stage_watch, worker_runs
from flows.backends import backend_named
from flows.build import Build, without_gpu_slot
from flows.build_llm import build_flow
from flows.deployments import LEAVING, STAGE_POOL
from flows.job import Job
from flows.launch_container import DockerBackend
from flows.settings import build_settings
from flows.stage_order import StageOrder, error_of, host_name, inputs_of, job_of, order_of, state_of
from stages.runtime.errors import (
    ContractError,
    GlassworksError,
    RetryableError,
    StopRequested,
    UserError,
)
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Artifact, Store
from tests.flows.stage_workers import BACKEND, cancelled_once, die, job, launched, run, told, worker

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("dummy_workers")]


def received(order: StageOrder, alone: bool = False) -> Job:
    store = Store(Path(order.store))
    packages = launch.ProcessBackend().packages
    return job_of(order, store, inputs_of(order, store), packages, "run", alone=alone)


@pytest.fixture
def first(tmp_path: Path) -> Artifact:
    """An artifact that another stage can read."""
    return asyncio.run(launch.launch(job(Store(tmp_path / "store"), "first"), lambda _: None))


# What travels


def test_an_order_is_references_and_the_job_comes_out_again(first: Artifact, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    asked = job(store, "second", {"first": first}, word="sand")
    text = order_of(asked, "process", ()).model_dump_json()
    assert "glass" not in text and str(first.folder) not in text
    found = received(StageOrder.model_validate_json(text))
    assert (found.spec, found.config, found.key, found.inputs) == (
        asked.spec,
        asked.config,
        asked.key,
        asked.inputs,
    )
    assert found.options(tmp_path) == asked.options(tmp_path)


def test_alone_on_its_host_a_stage_gives_way_to_nobody(tmp_path: Path) -> None:
    asked = job(Store(tmp_path), "first")
    order = order_of(asked, "process", ()).model_copy(
        update={"niceness": 15, "environment": {"OMP_WAIT_POLICY": "PASSIVE"}}
    )
    assert (received(order, alone=True).niceness, received(order).niceness) == (0, 15)
    assert received(order, alone=True).environment == {}


def test_a_host_with_other_code_refuses_and_names_the_files(tmp_path: Path) -> None:
    order = order_of(job(Store(tmp_path), "first"), "process", ())
    key = order.key.model_copy(update={"code": {"stages/first/run.py": "0123"}})
    with pytest.raises(UserError, match=r"code stages/first/run.py") as caught:
        received(order.model_copy(update={"key": key}))
    assert host_name() in caught.value.message and "git -C" in caught.value.hint


def test_a_host_that_does_not_see_the_inputs_says_so(first: Artifact, tmp_path: Path) -> None:
    order = order_of(job(Store(tmp_path / "store"), "second", {"first": first}), "process", ())
    with pytest.raises(UserError, match="does not see first/") as caught:
        received(order.model_copy(update={"store": str(tmp_path / "elsewhere")}))
    assert "NFS" in caught.value.hint


@pytest.mark.parametrize("kind", [GlassworksError, UserError, ContractError, RetryableError, StopRequested])
@pytest.mark.parametrize("hint", ["", "type c"])
def test_an_error_comes_back_in_the_same_words(kind: type[GlassworksError], hint: str) -> None:
    before = kind("found a\nexpected b", hint=hint)
    after = error_of("first", state_of(before), "host-b")
    assert (type(after), after.message, after.hint) == (kind, before.message, before.hint)


def test_without_the_deployment_the_build_does_not_begin(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setattr("flows.launch_on_workers.DEPLOYMENT", "run-stage/missing")
    with pytest.raises(UserError, match="has no deployment run-stage/missing") as caught:
        asyncio.run(BACKEND.check(list))
    assert "glassworks up" in caught.value.hint


# What a worker does


async def leave(client: PrefectClient, flow_run: FlowRun) -> None:
    """A host where somebody types `glassworks down`."""
    await die(client, flow_run)
    leaving: State[Any] = Cancelling(message=LEAVING)
    await client.set_flow_run_state(flow_run.id, leaving, force=True)
    await asyncio.sleep(1.0)
    await client.set_flow_run_state(flow_run.id, Cancelled(), force=True)


async def be_cancelled(client: PrefectClient, flow_run: FlowRun) -> None:
    """A stage whose own run somebody cancels in the UI."""
    await die(client, flow_run)
    await client.set_flow_run_state(flow_run.id, Cancelled(), force=True)


@pytest.mark.usefixtures("prefect_api")
def test_a_worker_makes_the_artifact_and_tells_how_far_it_is(first: Artifact, tmp_path: Path) -> None:
    asked = job(Store(tmp_path / "store"), "second", {"first": first}, steps=3, seconds=0.8)
    artifact, events = launched(asked, run)
    assert artifact.part("text").joinpath("text.txt").read_text() == "glass glass"
    assert told(events) == [f"runs on {host_name()}", "the glass is hot"]
    assert {event["total"] for event in events if event["event"] == "progress"} == {3}


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [("user", UserError, "the sand is wet"), ("crash", GlassworksError, "the glass fell down")],
)
def test_the_stages_own_error_ends_the_launch(tmp_path: Path, fault: str, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        launched(job(Store(tmp_path / "store"), "first", fault=fault), run)


@pytest.mark.usefixtures("prefect_api")
def test_a_lost_host_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_watch, "STARTS_WITHIN_SECONDS", 0.3)
    hosts = iter([die, run])

    async def next_one(client: PrefectClient, flow_run: FlowRun) -> None:
        takes = next(hosts)
        monkeypatch.setattr(stage_watch, "STARTS_WITHIN_SECONDS", 0.3 if takes is die else 60.0)
        await takes(client, flow_run)

    artifact, events = launched(job(Store(tmp_path / "store"), "first"), next_one)
    assert artifact.part("text").is_dir()
    assert told(events)[0].startswith("lost its worker (no sign of life for")


@pytest.mark.usefixtures("prefect_api")
def test_a_host_that_leaves_gives_its_stage_to_the_next(tmp_path: Path) -> None:
    hosts = iter([leave, run])

    async def next_one(client: PrefectClient, flow_run: FlowRun) -> None:
        await next(hosts)(client, flow_run)

    artifact, events = launched(job(Store(tmp_path / "store"), "first"), next_one)
    assert artifact.part("text").is_dir()
    assert told(events)[0] == f"lost its worker ({LEAVING}); given to the next worker"


@pytest.mark.usefixtures("prefect_api")
def test_a_stage_cancelled_by_hand_is_not_begun_again(tmp_path: Path) -> None:
    with pytest.raises(RetryableError, match="first was cancelled on a worker") as caught:
        launched(job(Store(tmp_path / "store"), "first"), be_cancelled)
    assert caught.value.hint == "build again to go on"


@pytest.mark.usefixtures("prefect_api")
def test_a_stage_stops_when_its_run_is_given_up(tmp_path: Path) -> None:
    asked = job(Store(tmp_path / "store"), "first", steps=1000, seconds=0.1)

    async def cancel(client: PrefectClient, flow_run: FlowRun) -> None:
        running = asyncio.create_task(run(client, flow_run))
        while not (asked.work / "checkpoints" / "steps").exists():
            await asyncio.sleep(0.1)
        asking: State[Any] = Cancelling()
        await client.set_flow_run_state(flow_run.id, asking, force=True)
        await running

    with pytest.raises(RetryableError, match="first was cancelled on"):
        launched(asked, cancel)
    assert 0 < int((asked.work / "checkpoints" / "steps").read_text()) < 1000


@pytest.mark.usefixtures("prefect_api")
def test_a_stage_that_loses_every_host_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_watch, "STARTS_WITHIN_SECONDS", 0.2)
    with pytest.raises(RetryableError, match="lost its host 3 times"):
        launched(job(Store(tmp_path / "store"), "first"), die)


@pytest.mark.usefixtures("prefect_api")
def test_without_a_worker_it_says_what_to_type_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_watch, "TAKEN_WITHIN_SECONDS", 0.1)

    async def wait_and_cancel() -> tuple[list[str], Any]:
        events: list[dict[str, Any]] = []
        async with worker(None) as client:
            waiting = asyncio.create_task(BACKEND.launch(job(Store(tmp_path), "first"), events.append))
            while not events:
                await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            runs = [one for one in await client.read_flow_runs() if one.name == "run-first"]
            return told(events), max(runs, key=lambda one: one.created).state

    said, state = asyncio.run(wait_and_cancel())
    assert said == [f"waits: no worker takes stages; on any host: glassworks join {PREFECT_API_URL.value()}"]
    assert state.is_cancelled()


@pytest.mark.usefixtures("prefect_api")
def test_nothing_is_left_of_a_run_that_was_just_being_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FlowRun] = []
    create = worker_runs._create_run

    async def note(*asked: Any) -> FlowRun:
        made.append(await create(*asked))
        await asyncio.sleep(0.3)
        return made[0]

    monkeypatch.setattr(worker_runs, "_create_run", note)

    assert asyncio.run(cancelled_once(made, tmp_path)).is_cancelled()


@pytest.mark.usefixtures("prefect_api")
def test_what_trains_is_taken_first_whatever_the_clocks_say(tmp_path: Path) -> None:
    plain = job(Store(tmp_path), "first")
    training = replace(plain, spec=replace(plain.spec, gpu="preferred"), run_id="training")

    async def order_of_runs() -> list[str]:
        async with worker(None) as client:
            for asked in (plain, training):
                await worker_runs._submit(order_of(asked, "process", ()), asked, asked.run_id + tmp_path.name)
            due = await client.get_scheduled_flow_runs_for_work_pool(STAGE_POOL)
            for each in due:
                await client.delete_flow_run(each.flow_run.id)
            return [each.flow_run.name for each in due]

    assert asyncio.run(order_of_runs()) == ["training-first", "run-first"]


@pytest.mark.usefixtures("prefect_api")
def test_gpus_are_taken_where_the_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def slot(spec: StageSpec, config: StageConfig, say: Any) -> AsyncIterator[dict[str, str]]:
        say("waits for a GPU")
        yield {"CUDA_VISIBLE_DEVICES": "7"}

    seen: list[Job] = []

    async def note(self: Any, asked: Job, on_event: Any) -> Artifact:
        seen.append(asked)
        return await launch.launch(asked, on_event)

    monkeypatch.setattr(run_stage, "gpu_slot", slot)
    monkeypatch.setattr(launch.ProcessBackend, "launch", note)
    launched(job(Store(tmp_path / "store"), "first"), run)
    assert seen[0].environment["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.usefixtures("prefect_api")
def test_workers_docker_has_the_worker_start_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float]] = []

    async def look(self: DockerBackend, to_run: Any) -> None:
        seen.extend((spec.name, 0.0) for spec in to_run())

    async def note(self: DockerBackend, asked: Job, on_event: Any) -> Artifact:
        seen.append((asked.spec.name, self._limits["sft"].memory_gib))
        return await launch.launch(asked, on_event)

    monkeypatch.setattr(DockerBackend, "check", look)
    monkeypatch.setattr(DockerBackend, "launch", note)
    backend = backend_named("workers-docker", ["sft.memory_gib=7"])
    artifact, _ = launched(job(Store(tmp_path / "store"), "first"), run, backend)
    assert artifact.part("text").is_dir()
    assert seen == [("first", 0.0), ("first", 7.0)]


@pytest.mark.usefixtures("prefect_api")
def test_the_controller_takes_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.flows.test_build_llm import Silent

    monkeypatch.setattr(BACKEND, "check", lambda _: asyncio.sleep(0))
    build = Build(Store(tmp_path), build_settings("tiny"), Silent(), specs=(), backend=BACKEND)
    asyncio.run(build_flow(build))
    assert build.gpu_slot is without_gpu_slot
