"""Processes that stay: known by pid and start, stopped one and no other, whatever became of their file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import services
from flows.services import (
    ServiceBook,
    left_behind,
    pause,
    process_start,
    stop,
    stop_left_behind,
    unwatched,
)
from stages.runtime.errors import RetryableError

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); "
    "time.sleep(600)",
]
PARENT = [
    sys.executable,
    "-c",
    "import os, subprocess, sys, time; os.environ['PREFECT__FLOW_RUN_ID'] = 'run-1'; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    "print('up', flush=True); time.sleep(600)",
]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[ServiceBook]:
    book = ServiceBook(tmp_path)
    with book.held():
        yield book
    for name in ("one", "two"):
        if (service := book.read(name)) is not None:
            stop(service, 0.1)
            stop_left_behind(service, 0.1)


def started(book: ServiceBook, name: str, command: list[str]) -> services.Service:
    service = book.start(name, command, {}, {"port": "1"})
    until(lambda: "up" in service.last_words())
    return service


def test_one_is_stopped_and_the_other_runs_on(book: ServiceBook) -> None:
    one, two = started(book, "one", SLEEP), started(book, "two", SLEEP)
    assert book.running("one") == one
    assert stop(one)
    assert book.running("one") is None and book.read("one") == one
    assert two.alive


def test_what_ignores_sigterm_is_killed(book: ServiceBook) -> None:
    assert not stop(started(book, "one", STUBBORN), grace_seconds=0.3)
    assert book.running("one") is None


def test_a_pid_that_was_used_again_is_left_alone(book: ServiceBook) -> None:
    """The file of before a reboot names a pid that is somebody else's by now."""
    file = book.folder / "one.json"
    real = started(book, "one", SLEEP)
    time.sleep(0.05)  # the kernel counts starts in hundredths of a second
    stranger = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL)
    try:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": stranger.pid}))
        stale = book.read("one")
        assert stale is not None and not stale.alive
        assert stop(stale)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        stop(real)


def test_a_process_that_has_ended_has_no_start() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: process_start(process.pid) is None)  # a zombie until somebody asks how it ended
    process.wait()
    assert process_start(process.pid) is None
    assert process_start(os.getpid()) is not None


def test_the_start_where_there_is_no_proc() -> None:
    assert services._start_by_ps(os.getpid()) == services._start_by_ps(os.getpid()) is not None
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert services._start_by_ps(process.pid) is None


def test_what_a_killed_service_leaves_is_found_by_its_mark(book: ServiceBook) -> None:
    parent, other = started(book, "one", PARENT), started(book, "two", PARENT)
    os.kill(parent.pid, signal.SIGKILL)
    until(lambda: not parent.alive)
    assert list(left_behind(parent).values()) == ["run-1"]
    assert unwatched(parent) == {"run-1"} and unwatched(other) == set()
    assert stop_left_behind(parent, run="run-2") == 0
    assert stop_left_behind(parent) == 1
    assert left_behind(parent) == {}
    assert len(left_behind(other)) == 1 and other.alive


@pytest.mark.parametrize("text", ["", "{", "{}", '{"pid": 1}', "[1]"])
def test_a_file_that_nobody_can_read_is_no_service(book: ServiceBook, text: str) -> None:
    (book.folder / "one.json").write_text(text)
    assert book.read("one") is None


def test_two_at_once(book: ServiceBook) -> None:
    with pytest.raises(RetryableError, match="another glassworks up or down"), book.held():
        raise AssertionError("held twice")


def test_a_long_log_makes_room(book: ServiceBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MAX_LOG_BYTES", 10)
    (book.folder / "one.log").write_text("what was said before\n")
    assert started(book, "one", SLEEP).last_words() == "up"
    assert (book.folder / "one.log.1").read_text() == "what was said before\n"


def test_one_that_is_paused_does_nothing_and_can_be_stopped(book: ServiceBook, tmp_path: Path) -> None:
    count = f"import pathlib, time\nwhile True: pathlib.Path({str(tmp_path / 'n')!r}).open('a').write('x')"
    one = book.start("one", [sys.executable, "-c", count], {}, {})
    until((tmp_path / "n").exists)
    assert not one.stands_still
    pause(one)
    until(lambda: one.stands_still)
    before = (tmp_path / "n").stat().st_size
    time.sleep(0.1)
    assert (tmp_path / "n").stat().st_size == before
    assert one.alive and stop(one) and not one.alive
