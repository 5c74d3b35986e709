"""What prefect.yaml declares, on a Prefect server: registered where it is missing or has changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.prefect_rest import PrefectRest
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import REPOSITORY
from stages.runtime.store import write_durably

POOL = "glassworks"
#: Stages of builds that run elsewhere; apart from the builds, which would hold the places they wait for.
STAGE_POOL = "glassworks-stages"
#: Why runs are cancelled when their worker is stopped in good order; a build gives such stages to others.
LEAVING = "its host leaves"
FLOWS = ("build-llm", "rerun-stage", "run-stage")
PLANNED_WITHIN_SECONDS = 20.0
POLL_SECONDS = 0.2
#: What a deployment's form and schedule are made of.
SOURCES = (
    "prefect.yaml",
    "flows/build_llm.py",
    "flows/rerun_stage.py",
    "flows/run_stage.py",
    "flows/stage_order.py",
)


class Deployments:
    """The deployments of our flows. `folder` keeps what was registered last."""

    def __init__(self, api: PrefectRest, folder: Path) -> None:
        self._api = api
        self._note = folder / "deployments.json"
        self._registering: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Make the pool, and start registering unless the server has it all as it is declared now."""
        for pool in (POOL, STAGE_POOL):
            make_pool(self._api, pool)
        if self._is_registered():
            return
        self._registering = subprocess.Popen(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
            cwd=REPOSITORY,
            env={**os.environ, **client_environment(self._api.api_url)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _is_registered(self) -> bool:
        """A schedule that somebody paused in the UI stays paused: what is there is not registered again."""
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return noted["declared"] == declared(self._api.api_url) and set(noted["names"]) <= set(self.names())

    def finish(self) -> str:
        """Wait for `begin`; says what was done. Raises UserError where Prefect refuses prefect.yaml."""
        if self._registering is None:
            return "there already"
        output, _ = self._registering.communicate()
        if self._registering.returncode:
            last = "\n".join(output.strip().splitlines()[-12:])
            raise UserError(f"prefect.yaml could not be registered:\n{last}", hint="mend prefect.yaml")
        note = {"declared": declared(self._api.api_url), "names": self.names()}
        write_durably(self._note, json.dumps(note, indent=1))
        return "registered"

    def names(self) -> list[str]:
        """`flow/deployment` of all that the server has of our flows."""
        return sorted(self._found())

    def schedules(self) -> Iterator[tuple[str, str]]:
        """Each deployment that has a schedule: whether it is active, and what comes next."""
        found = {name: one for name, one in self._found().items() if one["schedules"]}
        for name, one in found.items():
            crons = ", ".join(str(s["schedule"].get("cron") or s["schedule"]) for s in one["schedules"])
            if _is_scheduled(one):
                yield "is active", f"{name}: {crons}; {self._next_run(one['id'])}"
            else:
                yield "is paused", f"{name}: {crons}; resume it in the UI"

    def _next_run(self, deployment: str) -> str:
        """The scheduler plans within seconds of registering; a broken one never does."""
        deadline = time.monotonic() + PLANNED_WITHIN_SECONDS
        while time.monotonic() < deadline:
            if planned := planned_runs(self._api, deployment):
                return f"next run {planned[0]}"
            time.sleep(POLL_SECONDS)
        return "no run planned yet: glassworks doctor"

    def without_planned_runs(self) -> list[str]:
        """Deployments with an active schedule but no planned run: then the server's scheduler is dead."""
        active = {name: one["id"] for name, one in self._found().items() if _is_scheduled(one)}
        return [name for name, deployment in active.items() if not planned_runs(self._api, deployment)]

    def _found(self) -> dict[str, dict[str, Any]]:
        flows = {flow["id"]: flow["name"] for flow in self._api.post("/flows/filter", limit=200)}
        ours = {"name": {"any_": list(FLOWS)}}  # not by pool: prefect.yaml may name another one
        found = self._api.post("/deployments/filter", flows=ours, limit=200)
        return {f"{flows[one['flow_id']]}/{one['name']}": one for one in found}


def _is_scheduled(deployment: dict[str, Any]) -> bool:
    return not deployment["paused"] and any(schedule["active"] for schedule in deployment["schedules"])


def make_pool(api: PrefectRest, name: str) -> None:
    """Make a work pool whose runs are processes, unless it is there."""
    if not api.exists(f"/work_pools/{name}"):
        api.post("/work_pools/", name=name, type="process", base_job_template={})


def declared(api_url: str) -> str:
    """A digest of everything that registering depends on."""
    parts = [api_url.encode(), str(REPOSITORY).encode(), *((REPOSITORY / f).read_bytes() for f in SOURCES)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def client_environment(api_url: str) -> dict[str, str]:
    """What a program of Prefect's needs to talk to a server and say little."""
    return {"PREFECT_API_URL": api_url, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}


def planned_runs(api: PrefectRest, deployment: str) -> list[str]:
    """When the scheduled runs of a deployment are due, the next one first."""
    runs = api.post(
        "/flow_runs/filter",
        flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
        deployments={"id": {"any_": [deployment]}},
        sort="EXPECTED_START_TIME_ASC",
        limit=3,
    )
    return [run["expected_start_time"][:16].replace("T", " ") + " UTC" for run in runs]
