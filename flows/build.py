"""One build: plans each stage when its inputs are there, runs what must run, keeps the record.

Knows nothing of Prefect, so that the same code serves the flows, the tests and a plain Python prompt.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from flows.launch import launch
from flows.plan import PlannedStage, plan_stage
from flows.report import essence, render_html, render_markdown
from flows.report.record import Outcome, RunRecord, StageRecord, Status
from flows.settings import BuildSettings
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError, StopRequested
from stages.runtime.events import EVENTS_NAME, read_events
from stages.runtime.fingerprint import fingerprint
from stages.runtime.spec import StageSpec
from stages.runtime.store import Artifact, Store, read_manifest, write_durably


class Audience(Protocol):
    """Whoever wants to know how it goes."""

    def started(self, stage: str, reasons: tuple[str, ...]) -> None:
        """A stage begins to run."""

    def event(self, stage: str, event: dict[str, Any]) -> None:
        """A stage reported something."""

    def finished(self, stage: str, outcome: str, seconds: float, note: str) -> None:
        """A stage is over."""


class NotReached(GlassworksError):
    """A stage could not run because one before it failed."""


def new_run_id() -> str:
    """Sorts by time, and two builds of the same second differ: `20260501-101530-3f9a`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass
class Build:
    """The state of one build."""

    store: Store
    settings: BuildSettings
    audience: Audience
    command: str = ""
    specs: tuple[StageSpec, ...] = STAGES
    only: Mapping[str, Artifact] | None = None
    """Stages that are not planned anew but taken from an earlier run (for rerunning single stages)."""
    run_id: str = field(default_factory=new_run_id)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    outcomes: dict[str, StageRecord] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock: float = field(default_factory=time.monotonic)
    _stopped: bool = False

    async def stage(self, spec: StageSpec, on_event: Callable[[dict[str, Any]], None]) -> Artifact:
        """Plan one stage, run it if it must run, and return its artifact."""
        for needed in {read.stage for read in spec.reads.values()}:
            if needed not in self.artifacts:
                self._note(spec, "not reached", (), None, 0.0, f"{needed} did not finish")
                raise NotReached(f"{spec.name} was not reached: {needed} did not finish")
        if self.only is not None and spec.name in self.only:
            return self._hit(spec, self.only[spec.name], "as in the earlier run")
        known = {name: artifact.manifest for name, artifact in self.artifacts.items()}
        planned = await asyncio.to_thread(plan_stage, spec, self.settings, known, self.store)
        if planned.outcome == "HIT" and planned.artifact is not None:
            return self._hit(spec, planned.artifact)
        if planned.outcome == "TRUST" and planned.artifact is not None and planned.key is not None:
            return self._trust(planned)
        return await self._run(planned, on_event)

    def _hit(self, spec: StageSpec, artifact: Artifact, note: str = "") -> Artifact:
        self.artifacts[spec.name] = artifact
        key = artifact.manifest.fingerprint
        self._note(spec, "hit", (note,) if note else (), key, artifact.manifest.provenance.seconds, "")
        self.audience.finished(spec.name, "HIT", 0.0, f"{key}  {note}".rstrip())
        return artifact

    def _trust(self, planned: PlannedStage) -> Artifact:
        assert planned.artifact is not None and planned.key is not None
        artifact = self.store.adopt(planned.artifact, planned.key)
        self.artifacts[planned.name] = artifact
        self._note(planned.spec, "trusted", planned.reasons, artifact.manifest.fingerprint, 0.0, "")
        self.audience.finished(planned.name, "TRUST", 0.0, f"kept although {'; '.join(planned.reasons)}")
        return artifact

    async def _run(self, planned: PlannedStage, on_event: Callable[[dict[str, Any]], None]) -> Artifact:
        spec, config = planned.spec, self.settings.configs[planned.name]
        assert planned.key is not None
        inputs = {role: self.artifacts[r.stage].part(r.part) for role, r in spec.reads.items()}
        self.audience.started(spec.name, planned.reasons)
        clock = time.monotonic()

        def both(event: dict[str, Any]) -> None:
            self.audience.event(spec.name, event)
            on_event(event)

        force = spec.name in self.settings.force
        try:
            artifact = await launch(spec, config, planned.key, inputs, self.store, both, force=force)
        except GlassworksError as error:
            seconds = time.monotonic() - clock
            stopped = isinstance(error, StopRequested)
            self._stopped |= stopped
            self._note(spec, "failed", planned.reasons, fingerprint(planned.key), seconds, str(error))
            self.audience.finished(spec.name, "STOPPED" if stopped else "FAILED", seconds, error.message)
            raise
        except asyncio.CancelledError:
            seconds = time.monotonic() - clock
            self._stopped = True
            note = "cancelled; its checkpoint is kept"
            self._note(spec, "failed", planned.reasons, fingerprint(planned.key), seconds, note)
            self.audience.finished(spec.name, "STOPPED", seconds, "build again to go on")
            raise
        seconds = time.monotonic() - clock
        self.artifacts[spec.name] = artifact
        key = artifact.manifest.fingerprint
        self._note(spec, "ran", planned.reasons, key, seconds, "")
        self.audience.finished(spec.name, "done", seconds, key)
        return artifact

    def _note(
        self,
        spec: StageSpec,
        outcome: Outcome,
        reasons: tuple[str, ...],
        key: str | None,
        seconds: float,
        error: str,
    ) -> None:
        self.outcomes[spec.name] = StageRecord(
            name=spec.name,
            outcome=outcome,
            reasons=reasons,
            fingerprint=key,
            seconds=round(seconds, 3),
            error=error,
        )

    def record(self) -> RunRecord:
        """What this run was and did, so far."""
        outcomes = [o for spec in STAGES if (o := self.outcomes.get(spec.name))]
        bad = {o.outcome for o in outcomes}
        status: Status = "stopped" if self._stopped else "failed" if "failed" in bad else "completed"
        return RunRecord(
            run_id=self.run_id,
            preset=self.settings.preset,
            started_at=self.started_at.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 1),
            command=self.command,
            status=status,
            stages=tuple(outcomes),
            configs={name: c.model_dump(mode="json") for name, c in self.settings.configs.items()},
        )

    def write_report(self) -> Path:
        """Write the run's record and report; returns the path of the HTML file."""
        return write_report(self.store, self.record())


def gather(store: Store, record: RunRecord) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Manifests and events of a run's artifacts; of a stage that failed, the events that it left behind."""
    manifests: dict[str, Any] = {}
    events: dict[str, list[dict[str, Any]]] = {}
    for stage in record.stages:
        folder = store.artifact_dir(stage.name, stage.fingerprint or "-")
        manifest = read_manifest(folder)
        if manifest is not None:
            manifests[stage.name] = manifest
        else:
            folder = store.work_dir(stage.name, stage.fingerprint or "-")
        if found := list(read_events(folder / EVENTS_NAME)):
            events[stage.name] = found
    return manifests, events


def write_report(store: Store, record: RunRecord) -> Path:
    """Render the report of any run, now or later, from its record, manifests and events."""
    manifests, events = gather(store, record)
    folder = store.root / "runs" / record.run_id
    write_durably(store.root / "runs" / f"{record.run_id}.json", record.model_dump_json(indent=1) + "\n")
    write_durably(folder / "report.md", render_markdown(record, manifests, events))
    write_durably(folder / "report.html", render_html(record, manifests, events))
    return folder / "report.html"


def essence_of(store: Store, record: RunRecord) -> list[str]:
    """Ten lines of the essence."""
    return essence(record, *gather(store, record))
