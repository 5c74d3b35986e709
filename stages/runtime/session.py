"""What a running stage holds in its hand: events, a folder that survives a kill, and the question "stop?"."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stages.runtime.errors import StopRequested
from stages.runtime.events import EventLog

PROGRESS_EVERY_SECONDS = 0.5
POLLS_ARE_FRESH_SECONDS = 15.0
#: In a long step or evaluation a stage asks late, and a cancelled one has to be gone within 15 s: it is
#: interrupted, and its last checkpoint counts. One that has asked in time saves, however long that takes.
ASKS_WITHIN_SECONDS = 5.0


class StageSession:
    """Handed to every stage's `run`."""

    def __init__(self, stage: str, work_dir: Path, log: EventLog) -> None:
        self.stage = stage
        self.work_dir = work_dir
        """Survives a kill: what is stored here is there again when the same artifact is built next."""
        self._log = log
        self._stop = False
        self._last_poll = float("-inf")
        self._last_progress = float("-inf")
        self._progress_start: tuple[str, float, int] | None = None

    @property
    def events_as_json(self) -> bool:
        """Whether events are printed as JSON, for a program that prints some on behalf of this one."""
        return self._log.as_json

    def log(self, message: str) -> None:
        """Say something that a reader of the log wants to know. Not for every step."""
        self._log.emit("log", level="info", message=message)

    def warn(self, message: str) -> None:
        """Say that something is not as the user may expect."""
        self._log.emit("log", level="warning", message=message)

    def progress(self, done: int, total: int, unit: str = "steps", **info: float | str) -> None:
        """Report `done` of `total` `unit`s; throttled, and the time that is left is computed here."""
        now = time.monotonic()
        if self._progress_start is None or self._progress_start[0] != unit or done < self._progress_start[2]:
            self._progress_start = (unit, now, done)
        if done < total and now - self._last_progress < PROGRESS_EVERY_SECONDS:
            return
        self._last_progress = now
        _, started, first = self._progress_start
        rate = (done - first) / (now - started) if now > started else 0.0
        eta = (total - done) / rate if rate > 0 else None
        self._log.emit(
            "progress",
            done=done,
            total=total,
            unit=unit,
            eta_seconds=None if eta is None else round(eta, 1),
            per_second=round(rate, 3),
            info=info,
        )

    def metrics(self, step: int, **values: float) -> None:
        """Add one point at `step` to the curve of every named value."""
        self._log.emit("metrics", step=step, values=values)

    def sample(self, prompt: str, text: str, step: int | None = None, kind: str = "text") -> None:
        """Show what a model wrote for `prompt`."""
        self._log.emit("sample", prompt=prompt, text=text, step=step, kind=kind)

    def table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = ""
    ) -> None:
        """A small table for the report and the Prefect UI."""
        self._log.emit(
            "table", name=name, columns=list(columns), rows=[list(r) for r in rows], caption=caption
        )

    def chart(
        self,
        name: str,
        *,
        title: str,
        x_label: str,
        y_label: str,
        series: Mapping[str, Sequence[Sequence[Any]]],
        kind: str = "line",
    ) -> None:
        """A plot: `series` maps a label to its [x, y] or, with error bars, [x, y, low, high] points."""
        points = {label: [list(point) for point in line] for label, line in series.items()}
        self._log.emit(
            "chart", name=name, title=title, x_label=x_label, y_label=y_label, series=points, kind=kind
        )

    def heatmap(
        self,
        name: str,
        *,
        title: str,
        x_label: str,
        y_label: str,
        x_names: Sequence[str],
        y_names: Sequence[str],
        panels: Mapping[str, Sequence[Sequence[float]]],
    ) -> None:
        """Matrices of the same rows and columns, one panel each, as shades between the lowest and highest."""
        self._log.emit(
            "chart", name=name, title=title, x_label=x_label, y_label=y_label, kind="heatmap", series={},
            x_names=list(x_names), y_names=list(y_names),
            panels={label: [list(row) for row in rows] for label, rows in panels.items()},
        )  # fmt: skip

    def batch(self, rows: Sequence[Sequence[Mapping[str, Any]]], caption: str) -> None:
        """Rows of a training batch as stretches of text in order, each with what becomes of it: {"text",
        "weight" in the loss (0: only read), "conversation" (its number in the row), "is_cut" (its end is)}.
        """
        told = [[dict(stretch) for stretch in row] for row in rows]
        self._log.emit("batch", rows=told, caption=caption)

    def should_stop(self) -> bool:
        """Whether SIGTERM or Ctrl-C arrived. Whoever asks must stop in order: save, raise StopRequested."""
        self._last_poll = time.monotonic()
        stop = self._stop  # read once: a signal that comes after this line has not been heard yet
        if stop:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return stop

    def install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT set the flag; a stage that does not poll it is interrupted."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        polled = time.monotonic() - self._last_poll < POLLS_ARE_FRESH_SECONDS
        if polled and not self._stop:
            self._stop = True
            signal.signal(signal.SIGALRM, lambda *_: self._interrupt(number))
            signal.setitimer(signal.ITIMER_REAL, ASKS_WITHIN_SECONDS)
            return
        self._interrupt(number)

    def _interrupt(self, number: int) -> NoReturn:
        name = signal.Signals(number).name
        raise StopRequested(f"{self.stage} was stopped by {name}", hint="build again to go on")
