"""What the person in front of the terminal sees: a line per running stage, and one when it is done.

On a terminal the lines move; in a log file each stage says something about every ten seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stages.runtime.events import describe_progress, format_seconds

QUIET_EVERY_SECONDS = 10.0
REFRESH_PER_SECOND = 4


class Terminal:
    """Draws the state of a build. Use as a context manager around it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._running: dict[str, str] = {}
        self._overall = ""
        self._said: set[str] = set()
        self._said_at: dict[str, float] = {}
        self._live = Live(console=self.console, refresh_per_second=REFRESH_PER_SECOND, transient=True)

    def __enter__(self) -> Terminal:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._said.add(text)
        self.console.print(text, markup=False, soft_wrap=True)

    def say_once(self, text: str) -> None:
        """The same, unless just this was said before."""
        if text not in self._said:
            self.say(text)

    def started(self, stage: str, reasons: Mapping[int, str] | tuple[str, ...]) -> None:
        """A stage begins to run, for these reasons."""
        self._running[stage] = "starting"
        listed = list(reasons)
        more = f" (+{len(listed) - 3} more)" if len(listed) > 3 else ""
        self.say(f"  {stage:<15} RUN   {'; '.join(str(r) for r in listed[:3])}{more}")
        self._draw()

    def event(self, stage: str, event: dict[str, Any]) -> None:
        """A stage reported something."""
        if event["event"] == "progress":
            self._running[stage] = describe_progress(event).strip() + _rate(event)
            self._quiet_line(stage)
            self._draw()
        elif event["event"] == "log" and event.get("level") == "warning":
            self.say(f"  {stage:<15} warning: {event['message']}")
        elif event["event"] == "log" and event.get("level") == "notice":
            self.say(f"  {stage:<15} ...   {event['message']}")

    def finished(self, stage: str, outcome: str, seconds: float, note: str) -> None:
        """A stage is over: `outcome` is HIT, done, TRUST, FAILED, STOPPED."""
        self._running.pop(stage, None)
        duration = format_seconds(seconds) if outcome != "HIT" else ""
        self.say(f"  {stage:<15} {outcome:<7} {duration:<7} {note}".rstrip())
        self._draw()

    def overall(self, text: str) -> None:
        """How far the build is as a whole."""
        self._overall = text
        self._draw()

    def _quiet_line(self, stage: str) -> None:
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said_at.get(stage, 0.0) >= QUIET_EVERY_SECONDS:
            self._said_at[stage] = now
            self.say(f"  {stage:<15} ...   {self._running[stage]}")

    def _draw(self) -> None:
        if not self.console.is_terminal:
            return
        grid = Table.grid(padding=(0, 2))
        for stage, text in self._running.items():
            grid.add_row(f"  {stage:<15}", text)
        if self._running and self._overall:
            grid.add_row(f"  {'all':<15}", self._overall)
        self._live.update(grid)


def _rate(event: Mapping[str, Any]) -> str:
    """`  2.1 steps/s`, unless the stage reports a rate of its own."""
    per_second = event.get("per_second")
    if not per_second or any(name.endswith("_per_second") for name in event.get("info", {})):
        return ""
    rate = f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
    return f"  {rate} {event['unit']}/s"
