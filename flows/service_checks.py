"""What `glassworks doctor` says about Prefect: the server that builds report to, and what `up` started."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from flows.checks import Check
from flows.deployments import POOL, Deployments
from flows.prefect_rest import PrefectRest
from flows.prefect_server import answers, listen, profile_api_url
from flows.records import run_ids
from flows.run_order import time_of
from flows.services import Service, ServiceBook
from stages.runtime.errors import GlassworksError, RetryableError
from stages.runtime.events import format_seconds
from stages.runtime.store import Store

MAX_CLOCK_SECONDS = 60.0
SET_CLOCK = "on the machine whose clock is wrong: sudo timedatectl set-ntp true"


def check_prefect(store: Path) -> Check:
    """The Prefect server that builds will report to: the user's must answer, our own needs a port."""
    home = prefect_home(store)
    if url := os.environ.get("PREFECT_API_URL") or profile_api_url(home):
        if not answers(url):
            remedy = "start it: glassworks up; or let builds bring their own: unset PREFECT_API_URL"
            return Check("Prefect server", False, f"{url} does not answer", remedy)
        theirs, ours = PrefectRest(url).version(), metadata.version("prefect")
        remedy = f"{sys.executable} -m pip install prefect=={ours} where the server runs, then restart it"
        return Check("Prefect server", theirs == ours, f"{url} is {theirs}, here is {ours}", remedy)
    if ServiceBook(home).running("server"):
        return Check("Prefect server", True, "the one that glassworks up started")
    try:
        with listen() as probe:
            port = probe.getsockname()[1]
        return Check("Prefect server", True, f"builds bring their own (port {port} is free)")
    except RetryableError as error:
        return Check("Prefect server", False, error.message, error.hint)


def check_clock(store: Path) -> Check:
    """This machine's clock against the Prefect server's, and against the newest run of the store.

    A worker takes what is due by its own clock: one that is an hour behind starts everything an hour late.
    """
    name, home = "clock", prefect_home(store)
    worker = ServiceBook(home).running("worker")
    url = os.environ.get("PREFECT_API_URL") or profile_api_url(home)
    url = url or (worker.about["api_url"] if worker else None)
    ahead = PrefectRest(url).seconds_ahead() if url and answers(url) else 0.0
    if abs(ahead) > MAX_CLOCK_SECONDS:
        found = f"the Prefect server's is {clock_words(ahead)} this machine's: runs start early or late"
        return Check(name, False, found, SET_CLOCK)
    newest = max(run_ids(Store(store)), default="")
    future = ((time_of(newest) or datetime.now(UTC)) - datetime.now(UTC)).total_seconds()
    if future > MAX_CLOCK_SECONDS:
        found = f"the store's newest run, {newest}, is {clock_words(future)} this machine's"
        return Check(name, False, found, SET_CLOCK, optional=True)
    return Check(name, True, "agrees with the server's" if url else "no run is of the future")


def clock_words(seconds: float) -> str:
    """`1h00m ahead of` or `1h00m behind`."""
    minutes = round(abs(seconds) / 60)
    return f"{format_seconds(60 * minutes)} {'ahead of' if seconds > 0 else 'behind'}"


def prefect_home(store: Path) -> Path:
    """Where Prefect keeps its records for builds of this store."""
    return Path(os.environ.get("PREFECT_HOME", store / "prefect"))


def check_services(store: Path) -> Check:
    """What `glassworks up` started still runs, in the version that we have, and plans what is scheduled."""
    book = ServiceBook(prefect_home(store))
    server, worker = book.read("server"), book.read("worker")
    helper = book.read("stage-worker")
    if helper is not None and (ended := _ended(helper)):
        return Check("services", False, ended, f"glassworks join {helper.about['api_url']}")
    if server is None and worker is None:
        helps = f"takes stages of builds at {helper.about['api_url']}" if helper is not None else ""
        return Check("services", True, helps or "none are kept running (glassworks up starts them)")
    wrong = [ended for one in (server, worker) if one is not None and (ended := _ended(one))]
    if wrong:
        return Check("services", False, "; ".join(wrong), "glassworks up")
    if worker is None:
        return Check("services", False, "the server runs, but no worker", "glassworks up")
    return _check_answers(PrefectRest(worker.about["api_url"]), book)


def _ended(service: Service) -> str:
    """What is wrong with a process; nothing where it runs."""
    if service.stands_still:
        return f"the {service.name} (pid {service.pid}) stands still: a signal has paused it"
    ended = f"the {service.name} (pid {service.pid}) has ended; its log: {service.log}"
    return "" if service.alive else ended


def _check_answers(api: PrefectRest, book: ServiceBook) -> Check:
    again = "glassworks down, then glassworks up"
    if not answers(api.api_url):
        return Check("services", False, f"the server at {api.api_url} does not answer", "glassworks up")
    try:
        theirs, ours = api.version(), metadata.version("prefect")
        if theirs != ours:
            return Check("services", False, f"the server is Prefect {theirs}, here is {ours}", again)
        if api.get(f"/work_pools/{POOL}")["is_paused"]:
            return Check("services", False, f"the pool {POOL} is paused", f"prefect work-pool resume {POOL}")
        idle = Deployments(api, book.folder).without_planned_runs()
    except GlassworksError as error:
        return Check("services", False, error.message, again)
    if idle:
        found = f"{', '.join(idle)}: scheduled, but no run is planned; see {book.folder / 'server.log'}"
        return Check("services", False, found, again)
    return Check("services", True, f"server and worker run, {api.api_url.removesuffix('/api')}")
