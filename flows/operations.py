"""`glassworks up` and `down`: a Prefect server that stays, a worker that runs what is due, the deployments.

`up` looks at each of the three and does only what is missing, so it is also how to mend any of them.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.deployments import LEAVING, STAGE_POOL, Deployments, client_environment, make_pool
from flows.prefect_rest import PrefectRest
from flows.prefect_server import answers, listen, prepare_prefect, profile_api_url
from flows.service_checks import MAX_CLOCK_SECONDS, SET_CLOCK, clock_words
from flows.services import (
    Service,
    ServiceBook,
    left_behind,
    orderly_end,
    pause,
    stop,
    stop_left_behind,
    unwatched,
)
from flows.stores import store_name
from flows.worker_kind import BUILDS, STAGES_SERVICE, WorkerKind
from stages.runtime.errors import RetryableError, UserError
from stages.runtime.store import Store

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
FIRST_PORT, NUM_PORTS = 4200, 10
STARTUP_SECONDS = 120.0
HANGS_AFTER_SECONDS = 20.0
#: A stage has 25 s for its checkpoint (flows/launch.py), Prefect some more for the last words.
CANCELLED_WITHIN_SECONDS = 45.0
POLL_SECONDS = 0.2
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

Say = Callable[[str], None]


class Operations:
    """The services of one store, under one Prefect home."""

    def __init__(self, store: Store, say: Say) -> None:
        prepare_prefect(store)
        self.store = store_name(store)
        self.home = Path(os.environ["PREFECT_HOME"]).resolve()
        os.environ["PREFECT_HOME"] = str(self.home)  # services run in another folder
        self.book = ServiceBook(self.home)
        self._tell = say

    def up(self, port: int | None = None, host: str = "127.0.0.1") -> None:
        """Bring up what does not run. Raises UserError or RetryableError with what to type next."""
        with self.book.held():
            api = PrefectRest(self._ensure_server(port, host))
            self._check_version(api)
            deployments = Deployments(api, self.book.folder)
            deployments.begin()  # five seconds, in which the worker starts
            self._ensure_worker(api, BUILDS)
            self._say("deployments", deployments.finish(), ", ".join(deployments.names()))
            for state, about in deployments.schedules():
                self._say("schedule", state, about)
            self._compare_clocks(api)
        self._tell(f"{'open':<12} {api.api_url.removesuffix('/api')}")

    def join(self, url: str | None, at_once: int) -> None:
        """Take stages of builds that run elsewhere. Raises UserError or RetryableError with what to type."""
        with self.book.held():
            api = PrefectRest(self._server_to_join(url))
            self._check_version(api)
            make_pool(api, STAGE_POOL)
            self._ensure_worker(api, WorkerKind(STAGES_SERVICE, STAGE_POOL, "glassworks stages", at_once))

    def _server_to_join(self, named: str | None) -> str:
        ours = self.book.running("server")
        url = named or os.environ.get("PREFECT_API_URL") or profile_api_url(self.home)
        if url is None and ours is not None:
            url = ours.about["api_url"]
        if url is None:
            raise UserError(
                "no Prefect server is named, and none of glassworks up runs here",
                hint="glassworks join http://HOST:4200/api; on HOST: glassworks up --host 0.0.0.0",
            )
        if not answers(url):
            raise UserError(
                f"no Prefect server answers at {url}",
                hint="does it listen for this host, with `glassworks up --host 0.0.0.0`, and end in /api?",
            )
        return url.rstrip("/")

    def down(self) -> None:
        """Stop what `up` started: running builds keep their checkpoints, then the worker, then the server."""
        with self.book.held():
            # Builds first: they would submit again what is taken from under them.
            names = (BUILDS.service, STAGES_SERVICE)
            workers = [one for name in names if (one := self.book.read(name)) is not None]
            server = self.book.read("server")
            if not workers and server is None:
                self._tell(f"nothing that glassworks up started runs here ({self.book.folder})")
            for worker in workers:
                self._retire(worker)
                if left := stop_left_behind(worker):
                    self._tell(f"{'runs':<12} {left} processes that no worker watched any more: stopped")
            if server is not None:
                self._stop_service(server)

    def _say(self, what: str, state: str, about: str = "") -> None:
        self._tell(f"{what:<12} {state:<16} {about}".rstrip())

    # The server

    def _ensure_server(self, port: int | None, host: str) -> str:
        known = self.book.read("server")
        if (other := self._other_server(known)) is not None:
            return other
        if known is not None and known.alive:
            if self._answers_in_time(known):
                self._check_same_database(known)
                self._say("server", "runs already", _describe(known))
                return known.about["api_url"]
            stop(known)
            self._say("server", "did not answer", f"pid {known.pid} stopped")
        elif known is not None:
            self._say("server", "had ended", f"its log: {known.log}")
        return self._start_server(port, host, known)

    def _other_server(self, known: Service | None) -> str | None:
        """The server that PREFECT_API_URL or the profile names, if it is not the one that we started."""
        url = os.environ.get("PREFECT_API_URL") or profile_api_url(self.home)
        if url is None or (known is not None and url.rstrip("/") == known.about["api_url"]):
            return None
        if not answers(url):
            raise UserError(
                f"PREFECT_API_URL names {url}, where no Prefect server answers",
                hint="start that one, or let glassworks up start one here: unset PREFECT_API_URL",
            )
        self._say("server", "is another's", f"{url} (PREFECT_API_URL); only a worker is started here")
        return url.rstrip("/")

    def _answers_in_time(self, server: Service) -> bool:
        deadline = time.monotonic() + HANGS_AFTER_SECONDS
        while server.alive and time.monotonic() < deadline:
            if answers(server.about["api_url"]):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _start_server(self, port: int | None, host: str, known: Service | None) -> str:
        with closing(_listen(port, host, known)) as listening:
            number = listening.getsockname()[1]
            url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{number}/api"
            seen = f"http://{socket.gethostname() if host == '0.0.0.0' else host}:{number}/api"
            environment = _server_environment(self.home, url, seen, number)
            descriptor = listening.fileno()
            command = [sys.executable, "-m", "flows.prefect_server", str(descriptor), "--stay"]
            about = {"api_url": url, "database": database_name(self.home)}
            server = self.book.start("server", command, environment, about, [descriptor])
        deadline = time.monotonic() + STARTUP_SECONDS
        while not answers(url):
            if not server.alive or time.monotonic() > deadline:
                self._give_up(server, "the Prefect server did not start")
            time.sleep(POLL_SECONDS)
        self._say("server", "started", _describe(server))
        return url

    def _give_up(self, service: Service, what: str) -> None:
        stop(service)
        self.book.forget(service.name)
        hint = f"glassworks doctor; the whole log: {service.log}"
        if service.name == "server" and os.environ.get(DATABASE):
            hint = f"is {service.about['database']} there ({DATABASE})? The whole log: {service.log}"
        raise RetryableError(f"{what}\n{service.last_words()}", hint=hint)

    def _check_same_database(self, server: Service) -> None:
        asked = database_name(self.home)
        if os.environ.get(DATABASE) and asked != server.about["database"]:
            found = server.about["database"]
            raise UserError(
                f"the server that runs keeps its records in {found}, {DATABASE} names {asked}",
                hint="glassworks down, then glassworks up",
            )

    def _check_version(self, api: PrefectRest) -> None:
        theirs, ours = api.version(), metadata.version("prefect")
        if theirs != ours:
            raise UserError(
                f"the server at {api.api_url} is Prefect {theirs}, this environment has {ours}",
                hint="glassworks down, then glassworks up"
                if self.book.running("server")
                else f"{sys.executable} -m pip install prefect=={theirs}, or mend the server",
            )

    # The worker

    def _ensure_worker(self, api: PrefectRest, kind: WorkerKind) -> None:
        known = self.book.read(kind.service)
        about = {"api_url": api.api_url, "store": self.store, **kind.about}
        if known is not None and known.alive:
            if known.stands_still:
                self._say(kind.service, "stood still", f"pid {known.pid}, paused by a down that was cut off")
            elif dict(known.about) == about:
                self._say(kind.service, "runs already", f"pid {known.pid}, {kind.where}")
                return
            else:
                self._say(kind.service, "is for another", _changes(known.about, about))
            self._retire(known)
        elif known is not None:
            num_left = len(set(left_behind(known).values()) - {""})
            self._say(kind.service, "had ended", f"{num_left} runs of it go on; its log: {known.log}")
        environment = {**_worker_environment(api.api_url, self.store), **kind.environment}
        before = _heartbeat(api, kind)
        worker = self.book.start(kind.service, kind.command, environment, about)
        self._wait_for_worker(api, worker, kind, before)
        self._say(kind.service, "started", f"pid {worker.pid}, store {self.store}, {kind.where}")

    def _wait_for_worker(self, api: PrefectRest, worker: Service, kind: WorkerKind, before: str) -> None:
        deadline = time.monotonic() + STARTUP_SECONDS
        while _heartbeat(api, kind) == before:
            if not worker.alive or time.monotonic() > deadline:
                self._give_up(worker, "the worker did not start")
            time.sleep(POLL_SECONDS)
        if api.get(f"/work_pools/{kind.pool}")["is_paused"]:
            self._say("pool", "is paused", f"nothing runs until: prefect work-pool resume {kind.pool}")

    def _compare_clocks(self, api: PrefectRest) -> None:
        if abs(ahead := api.seconds_ahead()) > MAX_CLOCK_SECONDS:
            about = f"the server's is {clock_words(ahead)} this machine's, so runs start early or late"
            self._say("clock", "is off", f"{about}; {SET_CLOCK}")

    def _retire(self, worker: Service) -> None:
        """Stop a worker and, before, its runs. One for stages is paused meanwhile.

        Each stage that it gives up is submitted again at once, and it would take that. SIGTERM is no way to
        have it take no more: measured, it kills its runs at once, and their builds hear of it 30 s later.
        Stages notice by themselves that they are cancelled (flows/run_stage.py), builds by their worker or,
        where that is gone, by themselves (flows/cancel_watch.py).
        """
        with orderly_end():
            try:
                if worker.name == STAGES_SERVICE:
                    pause(worker)
                self._stop_runs(worker)
            except BaseException:
                stop(worker)  # not forgotten: the next down sees to what it has left
                raise
            self._stop_service(worker)

    def _stop_runs(self, worker: Service) -> None:
        """Cancel the runs of a worker as the UI does, and wait until their checkpoints are saved."""
        api = PrefectRest(worker.about["api_url"])
        if not answers(api.api_url):
            return
        running, alone = sorted(set(left_behind(worker).values()) - {""}), unwatched(worker)
        for run in running:
            if api.get(f"/flow_runs/{run}")["state"]["type"] not in FINAL:
                _set_state(api, run, "Cancelling")
        deadline = time.monotonic() + CANCELLED_WITHIN_SECONDS
        for run in running:
            # These have no worker that says how they ended.
            by_us = worker.name == STAGES_SERVICE or run in alone
            ended = self._ended(api, worker, run, by_us, deadline)
            self._say("run", ended["state"]["name"].lower(), f"{ended['name']}; what it has done is kept")

    def _ended(
        self, api: PrefectRest, worker: Service, run: str, by_us: bool, deadline: float
    ) -> dict[str, Any]:
        """The run at its end; where its process came to no word of its own, we stop it and say it."""
        while True:
            is_gone = by_us and run not in left_behind(worker).values()
            is_over = is_gone or time.monotonic() > deadline
            now: dict[str, Any] = api.get(f"/flow_runs/{run}")
            if now["state"]["type"] in FINAL:
                return now
            if is_over:
                stop_left_behind(worker, run=run)
                return now | _set_state(api, run, "Cancelled")
            time.sleep(POLL_SECONDS)

    def _stop_service(self, service: Service) -> None:
        ran = service.alive
        by_itself = stop(service)
        self.book.forget(service.name)
        state = "stopped" if ran and by_itself else "killed" if ran else "had ended"
        self._say(service.name, state, f"pid {service.pid}")


def _changes(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """`backend process -> docker`: only what differs."""
    keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    return ", ".join(f"{key} {was.get(key, 'unset')} -> {now.get(key, 'unset')}" for key in keys)


def _set_state(api: PrefectRest, run: str, name: str) -> dict[str, Any]:
    state = {"type": name.upper(), "name": name, "message": LEAVING}
    answer: dict[str, Any] = api.post(f"/flow_runs/{run}/set_state", state=state, force=True)
    return answer


def _heartbeat(api: PrefectRest, kind: WorkerKind) -> str:
    """When our worker last said that it lives, by the server's clock."""
    workers = api.post(f"/work_pools/{kind.pool}/workers/filter")
    return next((str(w["last_heartbeat_time"]) for w in workers if w["name"] == kind.name), "")


def database_name(home: Path) -> str:
    """Where a server started now would keep its records, without the password."""
    url = os.environ.get(DATABASE)
    if not url:
        return f"SQLite ({home / 'prefect.db'})"
    parts = urlsplit(url)
    if parts.scheme.startswith("sqlite"):
        return f"SQLite ({parts.path})"
    return f"PostgreSQL ({parts.hostname or 'local'}{parts.path})"


def _describe(server: Service) -> str:
    return f"{server.about['api_url'].removesuffix('/api')}, pid {server.pid}, {server.about['database']}"


def _listen(port: int | None, host: str, known: Service | None) -> socket.socket:
    """The port asked for; else the one of last time, so that a browser's tab stays right; else a free one."""
    if port is not None:
        return listen(port, host)
    last = urlsplit(known.about["api_url"]).port if known is not None else None
    candidates = [last] * (last is not None) + list(range(FIRST_PORT, FIRST_PORT + NUM_PORTS))
    for candidate in candidates:
        try:
            return listen(candidate, host)
        except UserError:
            continue
    raise UserError(
        f"no port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} is free", hint="glassworks up --port N"
    )


def _server_environment(home: Path, api_url: str, seen_url: str, port: int) -> dict[str, str]:
    ours = {
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": os.environ.get("PREFECT_SERVER_UI_API_URL", seen_url),
    }
    return client_environment(api_url) | ours


def _worker_environment(api_url: str, store: str) -> Mapping[str, str]:
    query = os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2")
    ours = {"GLASSWORKS_STORE": store, "PREFECT_WORKER_QUERY_SECONDS": query}
    return client_environment(api_url) | ours | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"}
