"""The flow that a worker runs for a build on another host: one stage, by its order.

While it runs it rewrites one progress artifact every two seconds, changed or not. That is what the UI shows,
what the controlling terminal shows, and the sign that this host lives (flows/launch_on_workers.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed

from flows.after_a_crash import stop_containers
from flows.backends import backend_named
from flows.gpu_slots import gpu_slot
from flows.gpus import gpus_to_hold, visible_gpus
from flows.job import Job
from flows.live_progress import LiveProgress, Logger, Screen
from flows.shared_build import Sharing
from flows.stage_order import StageOrder, host_name, inputs_of, job_of, state_of
from flows.stores import nearby_store
from flows.unheard import go_on_unheard
from flows.worker_kind import AT_ONCE
from stages.runtime.errors import GlassworksError
from stages.runtime.store import Artifact

GOING_ON = (StateType.PENDING, StateType.RUNNING)


class Pulse(LiveProgress):
    """Live progress that is sent whether it has changed or not, with the stage's own event beside it."""

    def __init__(self, key: str, logger: Logger, flow_run_id: UUID) -> None:
        super().__init__(key, logger, Screen(logger.warning))
        self._flow_run_id = flow_run_id
        self._beat = 0
        self._event: dict[str, Any] = {}
        self.given_up = asyncio.Event()
        """Set when our run was cancelled or taken for lost; Prefect tells us up to ten seconds later."""
        self.update(0.0, "starting")

    async def __aenter__(self) -> Pulse:
        await self._screen.show(self._send())
        await super().__aenter__()
        return self

    def event(self, event: dict[str, Any]) -> None:
        """Take note of an event; never waits for the API."""
        super().event(event)
        if event["event"] == "progress":
            self._event = event

    def say(self, text: str) -> None:
        """Something that everybody who looks should know, such as what it waits for."""
        self._logger.info("%s", text.strip())
        self.update(0.0, text.strip())

    async def _send(self) -> None:
        async with get_client() as client:
            try:
                await self._tell(client)
                state = (await client.read_flow_run(self._flow_run_id)).state
            except ObjectNotFound:  # somebody deleted the run: nobody waits for it any more
                self.given_up.set()
                return
            if state is not None and state.type not in GOING_ON:
                self.given_up.set()

    async def _tell(self, client: PrefectClient) -> None:
        assert self._latest is not None
        self._beat += 1
        percent, description = self._latest
        about = {"host": host_name(), "beat": str(self._beat), "event": json.dumps(self._event)}
        if self._artifact is not None:
            change = ArtifactUpdate(data=percent, description=description, metadata_=about)
            with suppress(ObjectNotFound):  # somebody deleted it: another is made
                await client.update_artifact(self._artifact, change)
                return
        made = await client.create_artifact(
            ArtifactCreate(
                key=self._key,
                type="progress",
                description=description,
                data=percent,
                metadata_=about,
                flow_run_id=self._flow_run_id,
            )
        )
        self._artifact = made.id


@flow(
    name="run-stage",
    persist_result=False,
    on_cancellation=[stop_containers],
    on_crashed=[stop_containers],
)
async def run_stage(order: StageOrder) -> Any:
    """One stage of a build that another host controls; submitted by `glassworks build --backend workers`.

    Args:
        order: Stage, settings, and which artifacts of which store it reads.
    """
    go_on_unheard()  # where the worker is killed, the stage goes on
    logger = get_run_logger()
    async with Pulse(order.stage, logger, UUID(flow_run.id)) as pulse:
        running = asyncio.ensure_future(_run(order, pulse))
        stopping = asyncio.create_task(_cancel_when(pulse.given_up, running))
        try:
            artifact = await running
        except asyncio.CancelledError:
            if not pulse.given_up.is_set():
                raise
            return Cancelled(message="stopped; what it has done so far is kept")
        except GlassworksError as error:
            logger.error("%s", error)
            return state_of(error)
        except Exception as error:
            trace = traceback.format_exc().strip()
            message = (
                f"{order.stage} could not be run on {host_name()}: {type(error).__name__}: {error}\n{trace}"
            )
            return state_of(GlassworksError(message, hint="build again to go on"))
        finally:
            stopping.cancel()
    return Completed(message=f"{artifact.manifest.fingerprint} on {host_name()}")


async def _cancel_when(given_up: asyncio.Event, running: asyncio.Future[Artifact]) -> None:
    await given_up.wait()
    running.cancel()


async def _run(order: StageOrder, pulse: Pulse) -> Artifact:
    alone = os.environ.get(AT_ONCE, "1") == "1"
    store = nearby_store(order.store)
    inputs = await asyncio.to_thread(inputs_of, order, store)
    backend = backend_named(order.backend, order.limits)
    asked = (order, store, inputs, backend.packages, flow_run.name)
    job = await asyncio.to_thread(lambda: job_of(*asked, alone=alone))
    gpus_to_hold(job.spec, job.config, visible_gpus())  # refused before anything is brought here
    await backend.check(lambda: [job.spec])
    sharing = Sharing(store, pulse.say)
    for artifact in inputs.values():  # one after the other: two roles may be parts of one artifact
        await sharing.at_hand(artifact)

    async def launch(asked: Job) -> Artifact:
        async with gpu_slot(asked.spec, asked.config, pulse.say) as gpu:
            return await backend.launch(replace(asked, environment={**asked.environment, **gpu}), pulse.event)

    artifact, _ = await sharing.make(job, launch)
    return artifact
