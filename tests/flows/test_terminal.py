"""What the terminal shows: lines that stay, and in a log file one about every ten seconds."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from flows import terminal as terminals
from flows.terminal import Terminal


def progress(done: int, **info: Any) -> dict[str, Any]:
    return {
        "event": "progress",
        "done": done,
        "total": 100,
        "unit": "steps",
        "eta_seconds": 30.0,
        "per_second": 2.125,
        "info": info,
    }


def console(is_terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=120, force_terminal=is_terminal, highlight=False), text


def test_a_stage_from_start_to_end() -> None:
    screen, text = console()
    with Terminal(screen) as terminal:
        terminal.started("sft", ("depth: 4 -> 6", "code a.py", "code b.py", "code c.py"))
        terminal.event("sft", progress(20, loss=2.5))
        terminal.event("sft", {"event": "log", "level": "warning", "message": "3 were cut off"})
        terminal.event("sft", {"event": "log", "level": "info", "message": "for Prefect only"})
        terminal.finished("sft", "done", 75.0, "abc")
    lines = text.getvalue().splitlines()
    assert lines[0].split() == [
        "sft",
        "RUN",
        "depth:",
        "4",
        "->",
        "6;",
        "code",
        "a.py;",
        "code",
        "b.py",
        "(+1",
        "more)",
    ]
    assert "20/100 steps" in lines[1] and "ETA 30s" in lines[1] and "2.1 steps/s" in lines[1]
    assert lines[2].endswith("warning: 3 were cut off")
    assert lines[3].split() == ["sft", "done", "1m15s", "abc"]
    assert len(lines) == 4


def test_a_log_file_gets_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr(terminals.time, "monotonic", lambda: 1000.0 + next(clock))
    screen, text = console()
    with Terminal(screen) as terminal:
        for done in range(10):
            terminal.event("sft", progress(done))
    assert 3 <= len(text.getvalue().splitlines()) <= 4  # 40 seconds


def test_a_stages_own_rate_is_enough() -> None:
    screen, text = console()
    with Terminal(screen) as terminal:
        terminal.event("sft", progress(1, tokens_per_second=9000.0))
    assert "steps/s" not in text.getvalue() and "9,000" in text.getvalue()


def test_the_whole_is_shown_below_what_runs() -> None:
    screen, text = console(is_terminal=True)
    with Terminal(screen) as terminal:
        terminal.started("sft", ())
        terminal.overall("3/9 stages   40 %  1m00s so far  ETA 1m30s")
        terminal._live.refresh()
    assert "all" in text.getvalue() and "ETA 1m30s" in text.getvalue()
