"""`glassworks down` on a host with several stages: each is given up once, and none of them comes back."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import operations
from flows.deployments import LEAVING
from flows.operations import Operations
from flows.services import ServiceBook, left_behind, stop, stop_left_behind
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
            self._say({})

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
def server() -> Iterator[Server]:
    with Server() as made:
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
    if (left := book.read("stage-worker")) is not None:
        stop(left, 0.1)
        stop_left_behind(left, 0.1)


def test_stages_that_are_given_up_do_not_come_back(tmp_path: Path, server: Server, book: ServiceBook) -> None:
    command = [sys.executable, "-c", WORKER, server.url]
    worker = book.start("stage-worker", command, {}, {"api_url": server.url})
    deadline = time.monotonic() + 60
    while len(set(left_behind(worker).values())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
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
