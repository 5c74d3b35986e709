"""Builds that a `kill -9` or a power cut ended: Prefect would show them as running for ever."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

#: Not the pending ones: a run that is tried again waits there with the tag of its first time.
UNFINISHED = [StateType.RUNNING, StateType.CANCELLING]
MESSAGE = "its process ended without a word; the next build went on from there"


async def close_lost_runs(mark: str, ours: UUID) -> int:
    """Say of all runs with the tag `mark` that still seem to run that they crashed; returns how many did.

    Our own run is none of them, though when it is tried again it has the tag from its first time.
    Only for who holds the store alone: then none of its builds can be running.
    """
    lost = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
        tags=FlowRunFilterTags(all_=[mark]),
    )
    unfinished = TaskRunFilterState(type=TaskRunFilterStateType(any_=[*UNFINISHED, StateType.PENDING]))
    async with get_client() as client:
        flow_runs = [run for run in await client.read_flow_runs(flow_run_filter=lost) if run.id != ours]
        for flow_run in flow_runs:
            of_it = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
            task_filter = TaskRunFilter(state=unfinished)
            for task_run in await client.read_task_runs(flow_run_filter=of_it, task_run_filter=task_filter):
                await client.set_task_run_state(task_run.id, Crashed(message=MESSAGE), force=True)
            await client.set_flow_run_state(flow_run.id, Crashed(message=MESSAGE), force=True)
    return len(flow_runs)
