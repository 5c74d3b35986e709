"""What blocks is held beside the event loop; what goes wrong on its way in or out is heard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flows.threads import ShouldStop, held_in_thread


@contextmanager
def failing_at_the_end(_: ShouldStop) -> Iterator[str]:
    yield "held"
    raise OSError("cannot be let go")


async def hold() -> None:
    async with held_in_thread(failing_at_the_end) as held:
        assert held == "held"


def test_what_is_raised_on_the_way_out_is_raised_here() -> None:
    with pytest.raises(OSError, match="cannot be let go"):
        asyncio.run(hold())
