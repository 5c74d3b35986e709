"""A build looks at the state of its own flow run, so that a cancellation reaches it without a worker.

Prefect tells a run that it is cancelled by a signal of the worker that started it. Where that one was killed
nobody signals: the run stays at Cancelling, its stages go on, and it holds its deployment's concurrency slot.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.live_progress import Screen

LOOK_EVERY_SECONDS = 3.0


class CancelWatch:
    """Cancels `running` when somebody has cancelled or ended the flow run for which it works.

    A worker that lives sends its signal as well: both may happen, in any order, and stages stop once.
    """

    def __init__(self, flow_run_id: UUID, running: asyncio.Future[Any], screen: Screen) -> None:
        self.is_cancelled = False
        """Whether it was us who cancelled `running`."""
        self._flow_run_id = flow_run_id
        self._running = running
        self._screen = screen
        self._looking = asyncio.create_task(self._look_on())

    def end(self) -> None:
        """Look no more."""
        self._looking.cancel()

    async def _look_on(self) -> None:
        while not self.is_cancelled:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            await self._screen.show(self._look())
        self._running.cancel()

    async def _look(self) -> None:
        async with get_client() as client:
            with suppress(ObjectNotFound):  # somebody deleted the run; the build keeps its own records
                state = (await client.read_flow_run(self._flow_run_id)).state
                self.is_cancelled = state is not None and (state.is_cancelling() or state.is_final())
