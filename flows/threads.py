"""Blocking calls beside an event loop, each in a thread of its own.

`asyncio.to_thread` has few threads and waits for them at the loop's end. Calls that last as long as a
container lives would use them up, and one that never comes back would keep the program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import TypeVar

Result = TypeVar("Result")
ShouldStop = Callable[[], bool]


def in_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Start `work` at once; the future gets what it returns or raises. The thread cannot be cancelled."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # may never be asked for

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return future


async def undisturbed(future: asyncio.Future[Result]) -> None:
    """Wait for the end of it, however often we are cancelled meanwhile."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({future})


@asynccontextmanager
async def held_in_thread(
    holding: Callable[[ShouldStop], AbstractContextManager[Result]],
) -> AsyncIterator[Result]:
    """Hold what blocks on its way in and out. Cancelled while it waits, it is told to stop and waited for."""
    stop, held = threading.Event(), ExitStack()
    entering = in_thread(lambda: held.enter_context(holding(stop.is_set)))
    try:
        yield await asyncio.shield(entering)  # a future that is awaited is cancelled with its task
    finally:
        stop.set()
        await undisturbed(entering)
        closing = in_thread(held.close)
        await undisturbed(closing)
        closing.result()  # what went wrong on the way out is not lost
