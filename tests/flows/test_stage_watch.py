"""A server that cannot be asked is waited for; one that answers with nothing but errors not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from flows import stage_watch, worker_runs
from flows.stage_watch import StageWatch
from stages.runtime.errors import RetryableError


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def watch(heard: list[str]) -> StageWatch:
    return StageWatch(lambda event: heard.append(event["message"]))


def refusals(status: int) -> Iterator[httpx.HTTPStatusError]:
    request = httpx.Request("POST", "http://server/api")
    while True:
        yield httpx.HTTPStatusError("", request=request, response=httpx.Response(status, request=request))


def test_a_stage_gives_up_on_a_server_that_only_errs(
    watch: StageWatch, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, cancelled = refusals(500), []

    async def submit(*_: Any) -> None:
        raise next(answers)

    async def cancel(*_: Any) -> None:
        cancelled.append(True)

    monkeypatch.setattr(worker_runs, "_submit", submit)
    monkeypatch.setattr(worker_runs, "_cancel", cancel)
    monkeypatch.setattr(worker_runs, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(stage_watch, "REFUSES_FOR_SECONDS", 0.05)
    order: Any = SimpleNamespace()
    with pytest.raises(RetryableError, match=r"nothing but errors for .*, the last one with status 500"):
        asyncio.run(worker_runs._run_somewhere(order, order, watch))
    assert len(heard) == 1 and "answers with errors; status 500" in heard[0]
    assert cancelled


def test_silence_between_errors_is_waited_for(
    watch: StageWatch, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_watch, "REFUSES_FOR_SECONDS", -1.0)
    for status in (503, None, 503, None, None):
        watch.server_is_away(status)
    assert ["does not answer" in line for line in heard] == [False, True, False, True]
