"""`glassworks down` with stages that are given up, with runs that hear nothing, and when it is cut off."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import operations
from flows.deployments import LEAVING, STAGE_POOL
from flows.operations import Operations
from flows.prefect_rest import PrefectRest
from flows.services import Service, ServiceBook, left_behind, pause, stop, stop_left_behind
from flows.worker_kind import WorkerKind
from stages.runtime.store import Store

#: Takes each run that is offered, as Prefect's worker does.
WORKER = """
import json, os, subprocess, sys, time, urllib.request
while True:
    for run in json.load(urllib.request.urlopen(sys.argv[1] + "/offered")):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         env=os.environ | {"PREFECT__FLOW_RUN_ID": run})
    time.sleep(0.02)
"""


class Server(ThreadingHTTPServer):
    """Flow runs of two stages. One that is cancelled ends after a moment, and its build submits it again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.states: dict[str, dict[str, str]] = {}
        self.offered: list[str] = []
        self.offer("one")
        self.offer("two")

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.server_address[1]}/api"

    def offer(self, run: str) -> None:
        """A build submits it."""
        self.states[run] = {"type": "SCHEDULED", "name": "Scheduled", "message": ""}
        self.offered.append(run)

    def cancel(self, run: str, state: dict[str, str]) -> None:
        """The first ends at once, the second later: so long the worker would have time for the first."""
        self.states[run] = state
        threading.Timer(0.1 if run == "one" else 1.0, self._end, [run]).start()

    def _end(self, run: str) -> None:
        self.states[run] = self.states[run] | {"type": "CANCELLED", "name": "Cancelled"}
        self.offer(f"{run} again")


class DeafServer(Server):
    """Its runs never take note of being cancelled."""

    def cancel(self, run: str, state: dict[str, str]) -> None:
        """Only what is said of them changes."""
        self.states[run] = state


class Answers(BaseHTTPRequestHandler):
    """What Prefect's API says to what `down` asks."""

    server: Server

    def do_GET(self) -> None:
        words = self.path.split("/")[2:]
        if words == ["offered"]:
            taken, self.server.offered = self.server.offered, []
            self._say(taken)
        elif words[0] == "flow_runs":
            self._say({"name": words[1], "state": self.server.states[words[1]]})
        else:
            self._say({"is_paused": False})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        run = self.path.split("/")[3]
        self.server.cancel(run, body["state"])
        self._say({"state": body["state"]})

    def _say(self, answer: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with getattr(request, "param", Server)() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceBook]:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(operations, "prepare_prefect", lambda store: None)  # it sets more variables
    book = ServiceBook(tmp_path)
    book.folder.mkdir()
    yield book
    for name in ("worker", "stage-worker"):
        if (left := book.read(name)) is not None:
            stop(left, 0.1)
            stop_left_behind(left, 0.1)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started(book: ServiceBook, server: Server, name: str) -> Service:
    """A worker that has taken both runs."""
    command = [sys.executable, "-c", WORKER, server.url]
    worker = book.start(name, command, {}, {"api_url": server.url})
    until(lambda: len(set(left_behind(worker).values())) == 2)
    return worker


def test_stages_that_are_given_up_do_not_come_back(tmp_path: Path, server: Server, book: ServiceBook) -> None:
    worker = started(book, server, "stage-worker")
    told: list[str] = []
    Operations(Store(tmp_path / "store"), told.append).down()
    assert {run: state["message"] for run, state in server.states.items()} == {
        "one": LEAVING,
        "two": LEAVING,
        "one again": "",
        "two again": "",
    }
    assert server.offered == ["one again", "two again"]
    assert not worker.alive and left_behind(worker) == {}
    assert [line.split()[:2] for line in told] == [
        ["run", "cancelled"],
        ["run", "cancelled"],
        ["stage-worker", "stopped"],
        ["runs", "2"],
    ]


@pytest.mark.parametrize("server", [DeafServer], indirect=True)
def test_a_run_that_no_worker_watches_is_gone_before_down_says_so(
    tmp_path: Path, server: Server, book: ServiceBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "CANCELLED_WITHIN_SECONDS", 0.1)
    worker = started(book, server, "worker")
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not worker.alive)
    working_when_told: list[tuple[str, bool]] = []

    def tell(text: str) -> None:
        run = text.split()[2].removesuffix(";")
        working_when_told.append((run, run in left_behind(worker).values()))

    Operations(Store(tmp_path / "store"), tell).down()
    assert working_when_told[:2] == [("one", False), ("two", False)]
    assert {state["type"] for state in server.states.values()} == {"CANCELLED"}


@pytest.mark.parametrize("server", [DeafServer], indirect=True)
def test_a_down_whose_terminal_is_closed_leaves_no_paused_worker(
    tmp_path: Path, server: Server, book: ServiceBook
) -> None:
    worker = started(book, server, "stage-worker")

    def close_the_terminal() -> None:
        until(lambda: worker.stands_still and server.states["two"]["type"] == "CANCELLING")
        os.kill(os.getpid(), signal.SIGHUP)

    closing = threading.Thread(target=close_the_terminal)
    closing.start()
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(SystemExit, match="129"):
        Operations(Store(tmp_path / "store"), lambda _: None).down()
    closing.join()
    assert not worker.alive and signal.getsignal(signal.SIGHUP) is before
    assert book.read("stage-worker") == worker, "the next down must know what is left"
    assert len(left_behind(worker)) == 2


class Sleeper(WorkerKind):
    """A worker that does nothing."""

    command = [sys.executable, "-c", "import time; time.sleep(600)"]  # type: ignore[assignment]  # noqa: RUF012


def test_a_worker_that_stands_still_is_replaced(
    tmp_path: Path, server: Server, book: ServiceBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = iter(range(100))
    monkeypatch.setattr(operations, "_heartbeat", lambda *_: str(next(beats)))
    told: list[str] = []
    kind = Sleeper("stage-worker", STAGE_POOL, "glassworks stages", 2)
    here = Operations(Store(tmp_path / "store"), told.append)
    here._ensure_worker(PrefectRest(server.url), kind)
    first = book.read("stage-worker")
    assert first is not None
    pause(first)
    until(lambda: first.stands_still)
    here._ensure_worker(PrefectRest(server.url), kind)
    second = book.running("stage-worker")
    assert second is not None and second.pid != first.pid and not first.alive
    here._ensure_worker(PrefectRest(server.url), Sleeper("stage-worker", STAGE_POOL, "glassworks stages", 3))
    assert [line[13:29].strip() for line in told] == [
        "started",
        "stood still",
        "stopped",
        "started",
        "is for another",
        "stopped",
        "started",
    ]
    assert told[4].endswith(" at_once 2 -> 3")
