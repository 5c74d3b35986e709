"""A Prefect server with its UI for as long as one build takes, and the settings that keep Prefect at home.

Prefect can start a server of its own when none is there. That one shares the terminal's Ctrl-C (measured:
while it starts, Ctrl-C leaves the build waiting for a dead server for two minutes), outlives a `kill -9` of
the build, and shows no UI. Ours starts in the background while the build gets ready and costs the same 3.5 s.

As a program, `python -m flows.prefect_server DESCRIPTOR` serves until its standard input ends; with `--stay`
until it is told to stop (flows/operations.py).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO

from flows.services import ServiceBook
from stages.runtime.errors import RetryableError, UserError
from stages.runtime.fingerprint import REPOSITORY
from stages.runtime.lease import hold_stdin_lease
from stages.runtime.store import Store

FIRST_PORT, NUM_PORTS = 4210, 80
STARTUP_SECONDS = 120.0
REACHABLE_SECONDS = 5.0
MAX_RESTARTS = 5
POLL_SECONDS = 0.1
#: Of the collector's three generations the two younger ones hold nearly all garbage.
YOUNGER, OLDEST = 1, 2
COLLECT_EVERY_SECONDS = 1.0
FULLY_EVERY = 60

#: Nothing may leave the machine, and the terminal is ours: Prefect's own lines go to its UI only.
PREFECT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
    # In memory, as is Prefect's default, a limit that is in use when the server dies is so for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}

#: What only a server that stays has a use for.
UNUSED_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "CANCELLATION_CLEANUP",
    "PAUSE_EXPIRATIONS",
    "FOREMAN",
)


def prepare_prefect(store: Store) -> None:
    """Settings that must be in the environment before Prefect is imported; the user's own win."""
    for name, value in PREFECT_SETTINGS.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.setdefault("PREFECT_HOME", str(store.root / "prefect")))
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {home} cannot be made: {error.strerror}",
            hint="give --store a folder that may be written to",
        ) from None
    # A proxy for the outside world must not get to see what we say to this machine.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), "127.0.0.1,localhost"]))


class PrefectServer:
    """The server that a build reports to: the user's, where PREFECT_API_URL names one, else one of our own.

    A context manager. Entering takes no time; `wait` until the server answers before Prefect is imported.
    """

    def __init__(self, home: Path, port: int | None = None) -> None:
        if url := os.environ.get("PREFECT_API_URL") or profile_api_url(home) or lasting_server(home):
            os.environ["PREFECT_API_URL"] = url
        self.is_ours = url is None
        self._home = home
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._has_answered = False
        self._closing = threading.Event()

    @property
    def api_url(self) -> str:
        """Where the API is; valid once entered."""
        return os.environ["PREFECT_API_URL"]

    @property
    def ui_url(self) -> str:
        """Where a person looks."""
        return self.api_url.rstrip("/").removesuffix("/api")

    def __enter__(self) -> PrefectServer:
        if self.is_ours:
            # Bound here and handed over: between asking for a free port and taking it, another build may.
            self._socket = listen(self._port)
            self._log = (self._home / "server.log").open("wb")
            self._process = self._start()
            threading.Thread(target=self._keep_alive, daemon=True).start()
            os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{self._socket.getsockname()[1]}/api"
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        assert self._socket is not None
        descriptor = self._socket.fileno()
        return subprocess.Popen(
            [sys.executable, "-m", "flows.prefect_server", str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=os.environ | _server_environment(self._socket.getsockname()[1]),
            start_new_session=True,
            pass_fds=[descriptor],
        )

    def _keep_alive(self) -> None:
        """Start the server again when something killed it, such as the kernel for want of memory.

        The socket stays open meanwhile, so Prefect's calls wait instead of failing.
        """
        for _ in range(MAX_RESTARTS):
            assert self._process is not None
            self._process.wait()
            if self._closing.is_set() or not self._has_answered:
                return
            self._process = self._start()

    def wait(self) -> None:
        """Return when the server answers. Raises RetryableError if ours does not, UserError if the user's."""
        deadline = time.monotonic() + (STARTUP_SECONDS if self.is_ours else REACHABLE_SECONDS)
        while not answers(self.api_url):
            if self._process is not None and self._process.poll() is not None:
                self._give_up(f"ended with exit code {self._process.returncode}")
            if time.monotonic() > deadline:
                self._give_up("does not answer")
            time.sleep(POLL_SECONDS)
        self._has_answered = True

    def join(self) -> None:
        """Wait until the server ends, which by itself it does not; returns at once if it is not ours."""
        if self._process is not None:
            self._process.wait()

    def _give_up(self, what: str) -> None:
        if self.is_ours:
            log = self._home / "server.log"
            last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            raise RetryableError(
                f"the Prefect server {what}\n{last}", hint=f"see {log}, and glassworks doctor"
            )
        raise UserError(
            f"the Prefect server at {self.api_url} {what}",
            hint="glassworks up starts or mends it; or let the build bring its own: unset PREFECT_API_URL",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._closing.set()
        del os.environ["PREFECT_API_URL"]
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._log is not None:
            self._log.close()
        if self._socket is not None:
            self._socket.close()


def _server_environment(port: int) -> dict[str, str]:
    services = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in UNUSED_SERVICES}
    return services | {
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }


def profile_api_url(home: Path) -> str | None:
    """The server that the active profile of a Prefect home names, read without importing Prefect."""
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
        url = profiles["profiles"][os.environ.get("PREFECT_PROFILE") or profiles["active"]]["PREFECT_API_URL"]
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError):
        return None
    return str(url)


def lasting_server(home: Path) -> str | None:
    """The server that `glassworks up` started for a Prefect home, while it runs."""
    service = ServiceBook(home).running("server")
    return service.about.get("api_url") if service is not None else None


def listen(port: int | None = None, host: str = "127.0.0.1") -> socket.socket:
    """A listening socket on `port`, or on the first free one from 4210 on.

    The same port from build to build keeps a browser's tab right. Raises UserError if `port` is taken, and
    RetryableError if all are.
    """
    for candidate in [port] if port else range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        with contextlib.suppress(OSError):
            return socket.create_server((host, candidate), backlog=128)
    if port:
        raise UserError(f"port {port} of {host} is taken", hint="leave --port out, or name another")
    raise RetryableError(
        f"no port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} is free for a Prefect server",
        hint="start one yourself and set PREFECT_API_URL",
    )


def answers(api_url: str) -> bool:
    """Whether a Prefect server answers there. Asks this machine or the named one directly, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{api_url.rstrip('/')}/health", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def collect_garbage_elsewhere() -> None:
    """Have a thread of its own collect garbage, so that the event loop never does.

    Measured with Prefect 3.8.8 on SQLite: a request that is cut short leaves a cursor to the collector. Where
    that runs in the event loop while the cursor's connection waits for the database, the loop waits too (for
    the connection's mutex, in sqlite3_reset), and with it whoever has the database: for a minute, until
    SQLite gives up. A thread may wait there.
    """
    gc.disable()
    threading.Thread(target=_collect_forever, daemon=True).start()


def _collect_forever() -> None:
    for number in itertools.count(1):
        time.sleep(COLLECT_EVERY_SECONDS)
        gc.collect(OLDEST if number % FULLY_EVERY == 0 else YOUNGER)


def serve(descriptor: int, stay: bool) -> None:
    """Serve API and UI on an open socket until asked to stop or, unless told to `stay`, until whoever
    started us is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not stay:
        hold_stdin_lease()
    import uvicorn
    from prefect.server.api.server import create_app

    collect_garbage_elsewhere()

    # A browser that still listens must not keep the build from ending.
    config = uvicorn.Config(create_app(final=True), log_level="error", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]), stay="--stay" in sys.argv[2:])
