"""What the controller of a build sees of a stage on another host: waiting, running, progress, silence.

Whether a host is lost is told by a counter that stands still while the server answers, for as long as claims
on shared storage last (flows/claims.py). No clocks are compared, and time in which the server itself was away
does not count.
"""

from __future__ import annotations

import json
import time

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL

from flows.claims import patience_seconds
from flows.deployments import LEAVING, STAGE_POOL
from flows.job import OnEvent, notice
from stages.runtime.errors import RetryableError

#: Prefect on a busy host needs some seconds from taking a run to its first word.
STARTS_WITHIN_SECONDS = 90.0
#: A free worker has taken a run by then.
TAKEN_WITHIN_SECONDS = 8.0
LOOK_EVERY_SECONDS = 1.5
#: More than this between two looks means that we or the server were away.
STEP_SECONDS = 3.0
#: A server that starts, or has too much to do, answers otherwise by then.
REFUSES_FOR_SECONDS = 120.0
LOOK_AT_IT = "look at its log, and at the proxy before it if there is one"


class StageWatch:
    """One flow run of a stage, from being submitted to its end."""

    def __init__(self, on_event: OnEvent) -> None:
        self.host = ""
        self.silent_seconds = 0.0
        self.is_lost = False
        self.is_leaving = False
        """Whether its host was told to stop working, in good order."""
        self._tell = on_event
        self._told: set[str] = set()
        self._away = ""
        self._refused_since: float | None = None
        self._beat = ""
        self._looked_at = time.monotonic()
        self._waited_seconds = 0.0
        self._patience = patience_seconds()

    async def look(self, client: PrefectClient, run: FlowRun) -> None:
        """Take note of how the run stands, and tell what is new. Raises httpx.HTTPError."""
        assert run.state is not None
        self._away, self._refused_since = "", None
        self.is_leaving |= run.state.message == LEAVING
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_SECONDS:
            return
        passed, self._looked_at = min(now - self._looked_at, STEP_SECONDS), now
        if run.state.type == StateType.SCHEDULED:
            await self._look_for_workers(client, passed)
        else:
            await self._look_at_pulse(client, run, passed)

    def server_is_away(self, status: int | None) -> None:
        """Tell that nothing can be seen, each time that it begins. `status`: of the server's answer, if any.

        RetryableError when it has answered nothing else for long: no `up` and no waiting mends such a server.
        """
        now = time.monotonic()
        if status is None:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since > REFUSES_FOR_SECONDS:
            raise RetryableError(
                f"the Prefect server at {_address()} has answered with nothing but errors for "
                f"{now - self._refused_since:.0f} s, the last one with status {status}",
                hint=f"{LOOK_AT_IT}; then build again: it goes on from here",
            )
        away = "does not answer" if status is None else "answers with errors"
        if away != self._away:
            more = "where it ran: glassworks up" if status is None else f"status {status}: {LOOK_AT_IT}"
            self._tell(notice(f"waits: the Prefect server {away}; {more}"))
        self._away = away

    async def _look_for_workers(self, client: PrefectClient, passed: float) -> None:
        self._waited_seconds += passed
        if self._waited_seconds < TAKEN_WITHIN_SECONDS:
            return
        pool = await client.read_work_pool(STAGE_POOL)
        workers = await client.read_workers_for_work_pool(STAGE_POOL)
        online = [worker for worker in workers if worker.status == "ONLINE"]
        if pool.is_paused:
            self._tell_once(f"waits: the pool is paused; prefect work-pool resume {STAGE_POOL}")
        elif not online:
            self._tell_once(f"waits: no worker takes stages; on any host: glassworks join {_address()}")
        else:
            self._tell_once(f"waits for one of {len(online)} workers")

    async def _look_at_pulse(self, client: PrefectClient, run: FlowRun, passed: float) -> None:
        of_it = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        found = await client.read_artifacts(artifact_filter=of_it, limit=1)
        about = (found[0].metadata_ or {}) if found else {}
        beat = about.get("beat", "")
        self.silent_seconds = 0.0 if beat != self._beat else self.silent_seconds + passed
        self._beat = beat
        self.is_lost = self.silent_seconds > (self._patience if beat else STARTS_WITHIN_SECONDS)
        if host := about.get("host", ""):
            self.host = host
            self._tell_once(f"runs on {host}")
        if event := json.loads(about.get("event", "{}")):
            self._tell(event)

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._tell(notice(message))


def _address() -> str:
    return str(PREFECT_API_URL.value())
