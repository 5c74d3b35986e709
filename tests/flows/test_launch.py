"""A stage is started, heard, and stopped in good order; what it says of its failure reaches the user."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import launch as launching
from flows.job import Job
from flows.launch import ProcessBackend, launch
from stages.runtime.errors import ContractError, GlassworksError, RetryableError, StopRequested, UserError
from stages.runtime.fingerprint import key_parts
from stages.runtime.spec import StageConfig, StageSpec
from stages.runtime.store import Store


class Config(StageConfig):
    """No settings."""


SPEC = StageSpec(name="fake", version=1, config=Config, writes={})

SCRIPT = """
import json, os, sys, time
def say(**event): print(json.dumps(event), flush=True)
{body}
"""


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Launch a script in a stage's place; returns the coroutine and the list of its events."""

    def start(body: str) -> tuple[Any, list[dict[str, Any]]]:
        script = tmp_path / "stage.py"
        script.write_text(SCRIPT.format(body=body))
        monkeypatch.setattr(launching, "_command", lambda *_: [sys.executable, str(script)])
        events: list[dict[str, Any]] = []
        key = key_parts(SPEC, Config(), {})
        return launch(Job(SPEC, Config(), key, {}, Store(tmp_path / "store")), events.append), events

    return start


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, UserError), (3, ContractError), (75, RetryableError), (143, StopRequested), (1, GlassworksError)],
)
def test_exit_codes_become_errors_with_the_stages_own_words(run_script: Any, code: int, kind: type) -> None:
    body = f"say(event='error', message='found a, expected b', hint='type c'); sys.exit({code})"
    coroutine, events = run_script(body)
    with pytest.raises(kind, match="found a, expected b") as caught:
        asyncio.run(coroutine)
    assert caught.value.hint == "type c"
    assert events[-1]["event"] == "error"


def test_lines_that_are_no_events_become_log_lines(run_script: Any) -> None:
    coroutine, events = run_script("print('from a library'); sys.exit(1)")
    with pytest.raises(GlassworksError, match="exit code 1"):
        asyncio.run(coroutine)
    assert events == [{"event": "log", "level": "info", "message": "from a library"}]


def test_a_traceback_is_passed_on(run_script: Any) -> None:
    coroutine, _ = run_script("raise LookupError('nothing here')")
    with pytest.raises(GlassworksError, match="LookupError: nothing here"):
        asyncio.run(coroutine)


def test_a_killed_stage_is_said_to_be_killed(run_script: Any) -> None:
    coroutine, _ = run_script("os.kill(os.getpid(), 9)")
    with pytest.raises(RetryableError, match="killed by SIGKILL"):
        asyncio.run(coroutine)


def test_cancelling_stops_the_process(run_script: Any, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"

    async def cancel_soon() -> None:
        coroutine, _ = run_script(body)
        running = asyncio.create_task(coroutine)
        while not pid_file.exists() or not pid_file.read_text():
            await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    started = time.monotonic()
    asyncio.run(cancel_soon())
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGCONT)


def test_cancelling_twice_still_waits_for_the_checkpoint(run_script: Any, tmp_path: Path) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    save = f"lambda *_: (time.sleep(1.0), open({str(saved)!r}, 'w').close(), sys.exit(143))"
    body = f"import signal; signal.signal(signal.SIGTERM, {save})\n"
    body += f"open({str(ready)!r}, 'w').close()\ntime.sleep(60)"

    async def cancel_twice() -> None:
        coroutine, _ = run_script(body)
        running = asyncio.create_task(coroutine)
        while not ready.exists():
            await asyncio.sleep(0.02)
        for _ in range(2):
            running.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel_twice())
    assert saved.exists()


def test_much_output_on_both_streams_does_not_block(run_script: Any) -> None:
    speak = "say(event='log', message='x' * 200); print('y' * 200, file=sys.stderr)"
    body = f"for i in range(3000): {speak}\nsys.exit(1)"
    coroutine, events = run_script(body)
    with pytest.raises(GlassworksError):
        asyncio.run(coroutine)
    assert len(events) == 3000


def test_a_python_without_what_a_stage_imports_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check() -> None:
        asyncio.run(ProcessBackend().check(lambda: [replace(SPEC, image="torch")]))

    check()
    monkeypatch.setitem(launching.NEEDED_PACKAGE, "torch", "torch_as_the_flow_image_has_it")
    with pytest.raises(UserError, match="fake needs torch_as_the_flow_image_has_it") as caught:
        check()
    assert "backend: docker" in caught.value.hint
    asyncio.run(ProcessBackend().check(lambda: [SPEC]))  # another family has what it needs
    asyncio.run(ProcessBackend().check(list))  # a build of hits imports nothing
