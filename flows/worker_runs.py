"""One stage as a flow run that any worker takes: submitted, watched, cancelled, tried again.

A stage becomes a flow run of the deployment `run-stage/any` in a pool of its own: in the pool of the builds,
a build that waits for its stages could hold the very place that they wait for. What travels is an order
(flows/stage_order.py); the data goes by the store. Clocks are not compared anywhere: that a host lives is
seen from its counting on, and runs are due since long ago, so that no worker takes them for later ones.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed, Scheduled

from flows.deployments import LEAVING
from flows.job import Job, OnEvent, notice
from flows.launch_on_workers import DEPLOYMENT, no_deployment
from flows.stage_order import SAME_STORE, StageOrder, error_of
from flows.stage_watch import StageWatch
from flows.stores import described, shared, store_name
from flows.threads import undisturbed
from stages.runtime.errors import RetryableError, UserError
from stages.runtime.events import EVENTS_NAME, read_events
from stages.runtime.store import Artifact

TRIES = 3
POLL_SECONDS = 0.5
CANCELLED_WITHIN_SECONDS = 40.0
#: What a server, or what stands before it, says while it starts or has too much to do.
COME_BACK = {408, 425, 429, 500, 502, 503, 504}
#: A shared folder may show what another host wrote a few seconds late.
SEEN_WITHIN_SECONDS = 10.0


async def run_on_a_worker(order: StageOrder, job: Job, on_event: OnEvent) -> Artifact:
    """Have a worker run one stage and return its artifact. Raises the stage's own error.

    A stage whose host is lost, or leaves, goes to another worker. RetryableError when that happens again and
    again.
    """
    for _ in range(TRIES):
        watch = StageWatch(on_event)
        state = await _run_somewhere(order, job, watch)
        if state.is_completed():
            return await _fetch(job, on_event, watch.host)
        if not (state.is_crashed() or watch.is_leaving):
            raise error_of(job.spec.name, state, watch.host)
        why = LEAVING if watch.is_leaving else state.message
        on_event(notice(f"lost {watch.host or 'its worker'} ({why}); given to the next worker"))
    raise RetryableError(
        f"{job.spec.name} lost its host {TRIES} times, the last time {watch.host or 'before it began'}",
        hint="look at the workers' logs, then build again: it goes on from here",
    )


async def _run_somewhere(order: StageOrder, job: Job, watch: StageWatch) -> State[Any]:
    """Submit an order and wait for its end; cancelling us cancels it, also while it is being submitted.

    A server that is away for a while costs nothing but time.
    """
    key = secrets.token_hex(16)  # the same in all attempts: of those that arrive, the server makes one run
    submitting = asyncio.ensure_future(_submit(order, job, key))
    try:
        while True:
            try:
                return await _follow((await asyncio.shield(submitting)).id, watch)
            except httpx.HTTPError as error:
                if not _is_away(error):
                    raise
                answer = error.response if isinstance(error, httpx.HTTPStatusError) else None
                watch.server_is_away(answer.status_code if answer is not None else None)
            except ObjectNotFound:
                raise RetryableError(
                    f"the flow run of {job.spec.name} is not on the Prefect server any more",
                    hint="was it deleted, or the server's records? Build again to go on",
                ) from None
            await asyncio.sleep(POLL_SECONDS)
            if submitting.exception() is not None:
                submitting = asyncio.ensure_future(_submit(order, job, key))
    except BaseException:
        await undisturbed(asyncio.ensure_future(_cancel(submitting, key)))
        raise


def _is_away(error: httpx.HTTPError) -> bool:
    """Whether it is no answer, or one that says to come back: not one that will always be the same."""
    return not isinstance(error, httpx.HTTPStatusError) or error.response.status_code in COME_BACK


async def _submit(order: StageOrder, job: Job, key: str) -> FlowRun:
    """Have the server make a flow run, or say which one it has made for this key."""
    async with get_client() as client:
        return await _create_run(client, order, job, key)


async def _create_run(client: PrefectClient, order: StageOrder, job: Job, key: str) -> FlowRun:
    """Stages that train are due before the others: where a worker has both to choose from, others wait."""
    due = datetime.now(UTC) - timedelta(days=2 if job.spec.gpu != "none" else 1)
    try:
        deployment = await client.read_deployment_by_name(DEPLOYMENT)
        return await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"order": order.model_dump(mode="json")},
            state=Scheduled(scheduled_time=due),
            name=f"{job.run_id}-{job.spec.name}",
            tags=["stage-of-a-build"],
            idempotency_key=key,
        )
    except ObjectNotFound:
        raise no_deployment(str(client.api_url)) from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (409, 422):
            raise
        raise UserError(
            f"the server's deployment {DEPLOYMENT} refuses the order: {error.response.text[:300]}",
            hint="it was registered by other code: glassworks up",
        ) from None


async def _follow(run_id: UUID, watch: StageWatch) -> State[Any]:
    """The state that a run ended in. Raises httpx.HTTPError, and ObjectNotFound for a run that is gone."""
    async with get_client() as client:
        async for state in _states(client, run_id, watch):
            if state.is_final():
                return state
    raise AssertionError("states come until the last one")


async def _states(client: PrefectClient, run_id: UUID, watch: StageWatch) -> AsyncIterator[State[Any]]:
    while True:
        run = await client.read_flow_run(run_id)
        assert run.state is not None
        yield run.state
        await watch.look(client, run)
        if watch.is_lost:
            lost: State[Any] = Crashed(message=f"no sign of life for {watch.silent_seconds:.0f} s")
            await client.set_flow_run_state(run_id, lost, force=True)
        else:
            await asyncio.sleep(POLL_SECONDS)


async def _cancel(submitting: asyncio.Future[FlowRun], key: str) -> None:
    """Cancel a run and wait until its stage has saved what it has; a server that is gone ends that.

    The run is looked for by its key: the answer to its submission may have been lost.
    """
    by_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    with suppress(httpx.HTTPError, TimeoutError, ObjectNotFound):
        async with asyncio.timeout(CANCELLED_WITHIN_SECONDS), get_client() as client:
            await asyncio.wait({submitting})
            for run in await client.read_flow_runs(flow_run_filter=by_key):
                waiting = run.state is not None and run.state.type == StateType.SCHEDULED
                asked: State[Any] = Cancelled() if waiting else Cancelling()
                await client.set_flow_run_state(run.id, asked, force=True)
                while (state := (await client.read_flow_run(run.id)).state) and not state.is_final():
                    await asyncio.sleep(POLL_SECONDS)


async def _fetch(job: Job, on_event: OnEvent, host: str) -> Artifact:
    """The artifact that a worker has made, and the warnings that its stage gave."""
    name, deadline = f"{job.spec.name}/{job.fingerprint}", time.monotonic() + SEEN_WITHIN_SECONDS
    while (artifact := await asyncio.to_thread(_made, job)) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{host} has made {name}, but it is not in {store_name(job.store)} here", hint=SAME_STORE
            )
        await asyncio.sleep(POLL_SECONDS)
    folder = await asyncio.to_thread(described, job.store, job.spec.name, job.fingerprint)
    for event in read_events(folder / EVENTS_NAME):
        if event["event"] == "log" and event.get("level") == "warning":
            on_event(event)
    return artifact


def _made(job: Job) -> Artifact | None:
    place = shared(job.store)
    find = job.store.find if place is None else place.find_there
    return find(job.spec.name, job.fingerprint)
