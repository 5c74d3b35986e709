"""Processes that outlive the command that started them: the server and the worker of `glassworks up`.

Each is known by its process id and by when it started, because process ids are used again. A file beside
Prefect's own records (`HOME/services`) says what runs; a process that it does not name is never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flows.store_use import locked
from stages.runtime.errors import RetryableError
from stages.runtime.fingerprint import REPOSITORY
from stages.runtime.store import write_durably

#: Everything that a service starts inherits this variable, so that nothing of it can get lost.
MARK = "GLASSWORKS_SERVICE"
STOP_SECONDS = 40.0
POLL_SECONDS = 0.1
MAX_LOG_BYTES = 10 * 2**20


@dataclass(frozen=True)
class Service:
    """One process that stays, as its file describes it."""

    name: str
    pid: int
    started: str
    """When the process began, as the kernel counts: with the pid it names one process and no other."""
    mark: str
    log: str
    log_begin: int
    """Where in the log its own words begin: what an earlier one said stands before."""
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return process_start(self.pid) == self.started

    @property
    def stands_still(self) -> bool:
        """Whether it is paused: a `down` that was killed leaves a worker so."""
        return self.alive and _state(self.pid) == "T"

    def last_words(self, num_lines: int = 6) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            text = Path(self.log).read_bytes()[self.log_begin :].decode("utf-8", "replace")
            return "\n".join(text.strip().splitlines()[-num_lines:])
        return ""


class ServiceBook:
    """What `HOME/services` says about the services of one Prefect home."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "services"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the book alone. Raises RetryableError while another `up` or `down` has it."""
        taken = RetryableError(
            f"another glassworks up or down is at work on {self.folder}",
            hint="run the same command when it is done",
        )
        with locked(self.folder / "lock", taken):
            yield

    def read(self, name: str) -> Service | None:
        """What stands there about a service, whether it runs or not; None for nothing readable."""
        try:
            return Service(**json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def running(self, name: str) -> Service | None:
        """The service, if it runs."""
        service = self.read(name)
        return service if service is not None and service.alive else None

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        about: Mapping[str, str],
        descriptors: Sequence[int] = (),
    ) -> Service:
        """Start a process in a session of its own and write it down, in the place of an earlier one.

        A session of its own: a shell's background job is deaf to Ctrl-C, and so would be the worker to the
        SIGINT by which Prefect ends it.
        """
        earlier = self.read(name)
        # The same mark again: what the earlier one left running is then still known.
        mark = earlier.mark if earlier is not None else secrets.token_hex(8)
        log = self.folder / f"{name}.log"
        _make_room(log)
        with log.open("ab") as output:
            log_begin = output.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, **environment, MARK: mark},
                start_new_session=True,
                pass_fds=descriptors,
            )
        service = Service(
            name, process.pid, process_start(process.pid) or "gone", mark, str(log), log_begin, dict(about)
        )
        write_durably(self.folder / f"{name}.json", json.dumps(asdict(service), indent=1))
        return service

    def forget(self, name: str) -> None:
        """Strike a service out that has stopped."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)


def _make_room(log: Path) -> None:
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def process_start(pid: int) -> str | None:
    """When a process began, with the boot that it belongs to; None if there is none or it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = _stat(pid)
    except OSError:
        fields = []
    if not fields:
        return None if Path("/proc/self/stat").exists() else _start_by_ps(pid)
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _state(pid: int) -> str:
    """`T` for one that was stopped by a signal."""
    asked = ["ps", "-o", "stat=", "-p", str(pid)]
    if fields := _stat(pid):
        return fields[0]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()[:1]


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process from its state on; nothing where there is none, or no /proc."""
    try:
        # The second field is the program's name in brackets and may hold anything.
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _start_by_ps(pid: int) -> str | None:
    """The same where there is no /proc, as on macOS."""
    asked = ["ps", "-o", "lstart=,stat=", "-p", str(pid)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    *words, state = done.stdout.split() or [""]
    return None if done.returncode or not words or state.startswith("Z") else " ".join(words)


def stop(service: Service, grace_seconds: float = STOP_SECONDS) -> bool:
    """SIGTERM, time to end, SIGKILL. Returns whether it ended by itself; True too if it did not run."""
    if not service.alive:
        return True
    _signal(service.pid, signal.SIGTERM)
    _signal(service.pid, signal.SIGCONT)  # it may be paused
    if _gone_within(grace_seconds, lambda: not service.alive):
        return True
    _signal(service.pid, signal.SIGKILL)
    _gone_within(5.0, lambda: not service.alive)
    return False


def pause(service: Service) -> None:
    """Let a process do nothing any more until it is stopped. What it has started goes on."""
    if service.alive:
        _signal(service.pid, signal.SIGSTOP)


def left_behind(service: Service) -> dict[int, str]:
    """Processes that a service started and that still run: pid -> the id of the flow run they work for."""
    wanted = f"{MARK}={service.mark}".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = path.read_bytes().split(b"\0")
            if wanted in variables and (pid := int(path.parent.name)) != service.pid:
                found[pid] = _value(variables, "PREFECT__FLOW_RUN_ID")
    return {pid: run for pid, run in found.items() if process_start(pid)}


def _value(variables: Sequence[bytes], name: str) -> str:
    prefix = f"{name}=".encode()
    return next((v[len(prefix) :].decode() for v in variables if v.startswith(prefix)), "")


def unwatched(service: Service) -> set[str]:
    """Flow runs that an earlier service left: none of their processes descends from this one."""
    left = left_behind(service)
    return set(left.values()) - {run for pid, run in left.items() if _descends(pid, service.pid)} - {""}


def _descends(pid: int, ancestor: int) -> bool:
    while (fields := _stat(pid)) and pid != ancestor:
        pid = int(fields[1])
    return pid == ancestor


def stop_left_behind(service: Service, grace_seconds: float = STOP_SECONDS, run: str | None = None) -> int:
    """End what a service has left running, for one flow run or all; returns how many processes that were."""

    def left() -> list[int]:
        return [pid for pid, of_run in left_behind(service).items() if run in (None, of_run)]

    for pid in (found := left()):
        _signal(pid, signal.SIGTERM)
    if not _gone_within(grace_seconds, lambda: not left()):
        for pid in left():
            _signal(pid, signal.SIGKILL)
    return len(found)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """A closed terminal (SIGHUP) and SIGTERM unwind what runs within, once, instead of ending us at once."""

    def end(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    asked = (signal.SIGHUP, signal.SIGTERM)  # nohup ignores the first, and so do we
    before = {n: signal.getsignal(n) for n in asked if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _gone_within(seconds: float, gone: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not gone():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
