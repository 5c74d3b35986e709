"""What only shows how a build goes must not cost it anything when the Prefect server is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import live_progress
from flows.live_progress import Screen


class Healthy(BaseHTTPRequestHandler):
    """A server that lives, and says nothing else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as there:
        threading.Thread(target=there.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{there.server_address[1]}/api"
        there.shutdown()


class Calls:
    """Calls to a server that is there or not; counts those that began."""

    def __init__(self) -> None:
        self.begun = 0

    async def one(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.begun += 1
        await asyncio.sleep(seconds)
        if error is not None:
            raise error


def test_a_server_that_is_gone_is_said_once_and_left_alone() -> None:
    said: list[str] = []
    screen, calls = Screen(said.append), Calls()

    async def show() -> None:
        for _ in range(3):
            await screen.show(calls.one(httpx.ConnectError("refused")))

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        asyncio.run(show())
    assert calls.begun == 1
    assert len(said) == 1 and "does not answer; the build goes on" in said[0] and "glassworks up" in said[0]


def test_a_server_that_comes_back_is_told_again(server: str) -> None:
    said: list[str] = []
    screen, calls = Screen(said.append), Calls()

    async def show() -> None:
        await screen.show(calls.one(httpx.ReadError("gone")))
        await screen.show(calls.one())
        await screen.show(calls.one())

    with temporary_settings({PREFECT_API_URL: server}):
        asyncio.run(show())
    assert calls.begun == 3
    assert [line.partition(" ")[0] for line in said] == ["warning:", "the"] and not screen.is_away


@pytest.mark.parametrize("as_prefect_says_it", [True, False])
def test_a_server_that_has_lost_its_records_is_said_once(server: str, as_prefect_says_it: bool) -> None:
    answer = httpx.HTTPStatusError(
        "404", request=httpx.Request("PATCH", server), response=httpx.Response(404)
    )
    lost = ObjectNotFound(answer) if as_prefect_says_it else answer
    said: list[str] = []
    screen, calls = Screen(said.append), Calls()

    async def show() -> None:
        for error in (lost, None, lost):
            await screen.show(calls.one(error))

    with temporary_settings({PREFECT_API_URL: server}):
        asyncio.run(show())
    assert calls.begun == 1
    assert len(said) == 1 and "does not know this run any more" in said[0]


def test_a_server_that_hangs_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_progress, "SHOWN_WITHIN_SECONDS", 0.05)
    said: list[str] = []
    screen = Screen(said.append)
    asyncio.run(screen.show(Calls().one(seconds=600)))
    assert screen.is_away and "(TimeoutError)" in said[0]


def test_a_cancellation_that_comes_as_a_call_ends_is_not_lost() -> None:
    async def scenario() -> bool:
        screen, loop = Screen(print), asyncio.get_running_loop()
        answered = loop.create_future()

        async def call() -> None:
            await answered

        async def show_forever() -> None:
            while True:
                await screen.show(call())
                await asyncio.sleep(0.01)

        showing = asyncio.create_task(show_forever())
        await asyncio.sleep(0.01)
        answered.set_result(None)
        loop.call_soon(showing.cancel)  # behind the call's own end, before who waits for it hears of that
        await asyncio.wait({showing}, timeout=1)
        return showing.cancelled()

    assert asyncio.run(scenario())
