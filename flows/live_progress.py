"""A stage's events become Prefect logs and artifacts: progress while it runs, a table and a plot when done.

Prefect's API takes about 250 log lines a second, so only what a person would read is forwarded.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.prefect_server import answers
from flows.report.charts import chart_png
from stages.runtime.events import describe_progress

UPDATE_EVERY_SECONDS = 2.0
SHOWN_WITHIN_SECONDS = 30.0
AWAY = (
    "the Prefect server does not answer; the build goes on and keeps its own records (glassworks up mends it)"
)
FORGOTTEN = "the Prefect server does not know this run any more; the build keeps its own records"
Logger = logging.Logger | logging.LoggerAdapter[Any]


def result_key(stage: str, name: str, *more: str) -> str:
    """The key of a stage's table or plot; names that begin with the stage's do not say it twice."""
    short = name.removeprefix(f"{stage}_").removeprefix(f"{stage.partition('_')[0]}_")
    return artifact_key(stage, short, *more)


def artifact_key(*words: str) -> str:
    """A key as Prefect wants it: lower case, digits and dashes."""
    text = "-".join(words).lower().replace("_", "-")
    return "".join(c for c in text if c.isalnum() or c == "-")


class Screen:
    """What shows how it goes; a server that is gone, or hangs, must not cost the build more than a moment.

    Prefect repeats a call for a minute before it gives up. So a call that shows something gets a few seconds,
    and after one that failed the server is asked for a sign of life first. `say` hears of each change.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.is_away = False
        """Whether the last call failed."""
        self._is_forgotten = False
        """Whether the server has other records than before: nothing that it is told will show again."""

    async def show(self, what: Coroutine[Any, Any, object]) -> None:
        """Await a call that only shows something, or leave it."""
        if self._is_forgotten:
            what.close()
            return
        if self.is_away and not await asyncio.to_thread(answers, PREFECT_API_URL.value() or ""):
            what.close()
            return
        try:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes as the call ends, and who
            # waits for the end of a task that shows something again and again would wait for ever.
            async with asyncio.timeout(SHOWN_WITHIN_SECONDS):
                await what
        except (httpx.HTTPError, ObjectNotFound, OSError) as error:  # a TimeoutError is an OSError
            if is_not_found(error):
                self._is_forgotten = True
                self._say(f"warning: {FORGOTTEN}")
            elif not self.is_away:
                self._say(f"warning: {AWAY} ({type(error).__name__})")
            self.is_away = True
        else:
            if self.is_away:
                self._say("the Prefect server answers again")
            self.is_away = False


def is_not_found(error: Exception) -> bool:
    """Whether the server answers, and says that there is no such run or artifact."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == HTTPStatus.NOT_FOUND
    return isinstance(error, ObjectNotFound)


class LiveProgress:
    """The progress artifact of one thing that runs; updated by a task of its own so that nobody waits."""

    def __init__(self, key: str, logger: Logger, screen: Screen) -> None:
        self._key = artifact_key(key, "progress")
        self._logger = logger
        self._screen = screen
        self._artifact: UUID | None = None
        self._latest: tuple[float, str] | None = None
        self._sent: tuple[float, str] | None = None
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LiveProgress:
        self._pump = asyncio.create_task(self._send_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._screen.show(self._send())

    def event(self, event: dict[str, Any]) -> None:
        """Take note of an event; never waits for the API."""
        if event["event"] == "progress" and event["total"]:
            self.update(100.0 * event["done"] / event["total"], describe_progress(event).strip())
        elif event["event"] == "log":
            warning = event.get("level") == "warning"
            self._logger.log(logging.WARNING if warning else logging.INFO, "%s", event["message"])

    def update(self, percent: float, description: str) -> None:
        """Set what the next update will show."""
        self._latest = (percent, description)

    async def _send_forever(self) -> None:
        while True:
            await asyncio.sleep(UPDATE_EVERY_SECONDS)
            await self._screen.show(self._send())

    async def _send(self) -> None:
        if self._latest is None or self._latest == self._sent:
            return
        percent, description = latest = self._latest
        if self._artifact is None:  # a hit never gets here, and costs no call
            self._artifact = await acreate_progress_artifact(percent, key=self._key, description=description)
        else:
            await aupdate_progress_artifact(self._artifact, progress=percent, description=description)
        self._sent = latest


async def publish_results(stage: str, events: list[dict[str, Any]]) -> None:
    """The stage's tables and plots as artifacts of the current task run."""
    started = time.monotonic()
    for event in events:
        if time.monotonic() - started > 30.0:  # a slow API must not hold up the build
            break
        if event["event"] == "table":
            rows = [dict(zip(event["columns"], row, strict=False)) for row in event["rows"]]
            await acreate_table_artifact(
                table=rows,
                key=result_key(stage, event["name"]),
                description=event["caption"] or event["name"].replace("_", " "),
            )
        elif event["event"] == "chart" and any(event["series"].values()):
            picture = await asyncio.to_thread(chart_png, event)
            encoded = base64.b64encode(picture).decode()
            # Not an image artifact: under its picture the UI would print the whole data URL as a link.
            await acreate_markdown_artifact(
                markdown=f"![{event['title']}](data:image/png;base64,{encoded})\n",
                key=result_key(stage, event["name"], "plot"),
                description=event["title"],
            )


def one_of_each(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables and charts, the last of each name: a resumed stage reports some of them twice."""
    latest: Mapping[tuple[str, str], dict[str, Any]] = {
        (e["event"], e["name"]): e for e in events if e["event"] in ("table", "chart")
    }
    return list(latest.values())
