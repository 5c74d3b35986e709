"""What a stage reports while it runs: JSON lines, one event each.

Every event has `event` (its kind) and `time` (seconds since the epoch). Kinds: started, log, progress,
metrics, sample, table, chart, batch, error, finished. The report and the Prefect artifacts are made of
nothing else.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

EVENTS_NAME = "events.jsonl"


class EventLog:
    """Appends events to a file and echoes them to a stream, as JSON or as lines for a person."""

    def __init__(self, path: Path, *, as_json: bool, stream: TextIO | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self.as_json = as_json
        self._stream = stream or sys.stdout

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event. Values must be JSON; NaN and infinities become null."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        line = json.dumps(_finite(record), ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()
        self._show(record, line)

    def tell(self, event: str, **fields: Any) -> None:
        """Show an event and do not keep it: what is said before the artifact is ours to build."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        self._show(record, json.dumps(_finite(record), ensure_ascii=False))

    def _show(self, record: dict[str, Any], line: str) -> None:
        text = line if self.as_json else describe(record)
        if text:
            print(text, file=self._stream, flush=True)

    def reopen(self) -> None:
        """Open the file anew: whoever held the artifact's lock before may have removed it with its folder."""
        self._file.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")

    def restart(self) -> None:
        """Forget what an earlier attempt wrote that left nothing to go on from."""
        self._file.truncate(0)

    def close(self) -> None:
        """Close the file; the stream stays open."""
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file in order; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


def describe(event: dict[str, Any]) -> str:
    """One line for a terminal, or "" for events that are only worth drawing."""
    kind = event["event"]
    if kind == "log":
        return f"{'warning: ' if event.get('level') == 'warning' else ''}{event['message']}"
    if kind == "progress":
        return describe_progress(event)
    if kind == "sample":
        return f"sample: {event['prompt']!r} -> {event['text']!r}"
    if kind == "table":
        return _draw_table(event)
    if kind == "error":
        return ""
    return ""


def describe_progress(event: dict[str, Any]) -> str:
    """`  120/400 steps  30 %  ETA 1m20s  loss 4.21`."""
    done, total = event["done"], event["total"]
    share = f"{100 * done / total:3.0f} %" if total else "  ? %"
    eta = event.get("eta_seconds")
    left = f"ETA {format_seconds(eta)}" if eta is not None else "ETA ?"
    extra = "  ".join(f"{name} {_short(value)}" for name, value in event.get("info", {}).items())
    return f"{done:>8,}/{total:,} {event['unit']}  {share}  {left}  {extra}".rstrip()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_seconds(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _draw_table(event: dict[str, Any]) -> str:
    rows = [[str(name) for name in event["columns"]]]
    rows += [[_short(cell) if cell is not None else "" for cell in row] for row in event["rows"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
    title = event["caption"] or event["name"]
    return "\n".join([title, *(line.rstrip() for line in lines)])
