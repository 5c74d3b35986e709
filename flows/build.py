"""One build: plans each stage when its inputs are there, runs what must run, keeps the record.

Knows nothing of Prefect, so that the same code serves the flows, the tests and a plain Python prompt.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from flows.forecast import Forecast
from flows.gpus import asks_for_devices, refuse_devices
from flows.job import Backend, Job
from flows.launch import ProcessBackend
from flows.plan import (
    PlannedStage,
    asks_for_experts,
    downstream,
    last_seconds,
    plan_build,
    plan_stage,
    refuse_in_vain,
    upstream,
)
from flows.report.record import Outcome, RunRecord, StageRecord, Status
from flows.run_order import close_note, new_run_id, note_begun
from flows.run_report import write_report
from flows.settings import BuildSettings
from flows.shared_build import Sharing, shared_record
from flows.transfer import DamagedError
from stages.catalog import STAGES
from stages.runtime.errors import GlassworksError, StopRequested, disk_full, is_disk_full
from stages.runtime.fingerprint import fingerprint
from stages.runtime.spec import Read, StageConfig, StageSpec
from stages.runtime.store import Artifact, Store

#: A stage that runs beside an earlier one takes what that leaves over. Two that share the cores evenly are
#: slower than one after the other: each waits at every step for its thread that the other keeps from running.
SIDE_BY_SIDE_NICENESS = 15
#: Side by side, a thread that waits must sleep, or it keeps the others from their cores. Alone it is faster
#: awake: fine-tuning on two cores does 5,620 targets a second so, and 4,110 with sleeping threads.
SHARING = {"OMP_WAIT_POLICY": "PASSIVE"}


class Audience(Protocol):
    """Whoever wants to know how it goes."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def started(self, stage: str, reasons: tuple[str, ...]) -> None:
        """A stage begins to run."""

    def event(self, stage: str, event: dict[str, Any]) -> None:
        """A stage reported something."""

    def finished(self, stage: str, outcome: str, seconds: float, note: str) -> None:
        """A stage is over."""

    def overall(self, text: str) -> None:
        """How far the build is as a whole."""


class GpuSlot(Protocol):
    """What keeps the stages that use a GPU from meeting on one."""

    def __call__(
        self, spec: StageSpec, config: StageConfig, say: Callable[[str], None]
    ) -> AbstractAsyncContextManager[Mapping[str, str]]:
        """Hold the GPUs that its settings ask for while the stage runs."""


@asynccontextmanager
async def without_gpu_slot(
    spec: StageSpec, config: StageConfig, say: Callable[[str], None]
) -> AsyncIterator[Mapping[str, str]]:
    """Where nobody else runs stages: nothing to wait for."""
    yield {}


class NotReached(GlassworksError):
    """A stage could not run because one before it failed."""


def first_line(error: GlassworksError) -> str:
    """What went wrong, without the details that follow."""
    return error.message.strip().partition("\n")[0]


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
    backend: Backend = field(default_factory=ProcessBackend)
    """Where stages run."""
    run_id: str = ""
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    outcomes: dict[str, StageRecord] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    failures: dict[str, GlassworksError] = field(default_factory=dict)
    """Stage -> why it failed; stages that were not reached because of it are not in here."""
    forecast: Forecast = field(init=False)
    settled: dict[str, asyncio.Event] = field(init=False)
    """Stage -> set once its artifact is there or will not be; what is shown of it may take longer."""
    stopped: bool = False
    """Whether the build was asked to stop."""
    stop_exit_code: int = 130
    """What the command line ends with when it was: 130 after Ctrl-C, 143 after SIGTERM, as shells have it."""
    gpu_slot: GpuSlot = field(default=without_gpu_slot)
    """Waits until the stage may have its GPUs for itself; gives the environment that names them."""
    sharing: Sharing = field(init=False)
    """What is to be done beside building where other hosts use the store too."""
    _mending: dict[str, asyncio.Lock] = field(default_factory=dict)
    _stale: set[str] = field(default_factory=set)
    _clock: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.run_id = self.run_id or new_run_id(self.store)
        self.settled = {spec.name: asyncio.Event() for spec in self.specs}
        self.sharing = Sharing(self.store, self._say, elsewhere=self.backend.elsewhere)
        self.forecast = Forecast({spec.name: last_seconds(self.store, spec.name) for spec in self.specs})

    def _say(self, text: str) -> None:
        self.audience.say(text)  # whoever that is by then

    async def check(self) -> None:
        """Raise GlassworksError where the backend, or a later stage, cannot do what this build asks for."""
        if asks_for_devices(self.settings):
            refuse_devices(self._to_run(), self.settings, self.backend)
        await self.backend.check(self._expected_to_run)
        if asks_for_experts(self.settings):  # otherwise there is nothing to plan for
            refuse_in_vain(self._to_run(), self.settings)

    def _expected_to_run(self) -> list[StageSpec]:
        return [stage.spec for stage in self._to_run()]

    def _to_run(self) -> list[PlannedStage]:
        kept = self.only or {}
        planned = plan_build(self.settings, self.store, self.backend.packages, self.specs)
        return [stage for stage in planned if stage.outcome == "RUN" and stage.name not in kept]

    async def stage(self, spec: StageSpec, on_event: Callable[[dict[str, Any]], None]) -> Artifact:
        """Plan one stage, run it if it must run, and return its artifact.

        Raises GlassworksError for everything that goes wrong, mistakes of ours included, and notes it: no
        stage may be missing from the record.
        """
        try:
            return await self._stage(spec, on_event)
        except asyncio.CancelledError:
            self.stopped = True
            raise
        except GlassworksError as error:
            self._note_failure(spec, error)
            raise
        except Exception as error:
            if is_disk_full(error):
                self._note_failure(spec, full := disk_full(spec.name, self.store.root))
                raise full from error
            message = f"{spec.name} could not be planned or run: {type(error).__name__}: {error}"
            ours = GlassworksError(
                f"{message}\n{traceback.format_exc().strip()}", hint="build again to go on"
            )
            self._note_failure(spec, ours)
            raise ours from error
        finally:
            self.settled[spec.name].set()

    def _note_failure(self, spec: StageSpec, error: GlassworksError) -> None:
        if not isinstance(error, NotReached):
            self.failures[spec.name] = error
        if spec.name not in self.outcomes:
            self._note(spec, "failed", (), None, 0.0, str(error))
            self.audience.finished(spec.name, "FAILED", 0.0, first_line(error))

    async def _stage(self, spec: StageSpec, on_event: Callable[[dict[str, Any]], None]) -> Artifact:
        for needed in {read.stage for read in spec.reads.values()}:
            if needed not in self.artifacts:
                self._note(spec, "not reached", (), None, 0.0, f"{needed} did not finish")
                raise NotReached(f"{spec.name} was not reached: {needed} did not finish")
        if self.only is not None and spec.name in self.only:
            return self._kept(spec, await self.sharing.settled(self.only[spec.name]))
        return await self._plan_and_run(spec, on_event)

    async def _plan_and_run(
        self, spec: StageSpec, on_event: Callable[[dict[str, Any]], None], again: bool = False
    ) -> Artifact:
        known = {name: artifact.manifest for name, artifact in self.artifacts.items()}
        clock = time.monotonic()
        asked = (spec, self.settings, known, self.store, self.backend.packages)
        planned = await asyncio.to_thread(plan_stage, *asked)
        if planned.outcome == "HIT" and planned.artifact is not None:
            artifact = await self.sharing.settled(planned.artifact)
            return self._hit(spec, artifact, seconds=time.monotonic() - clock)
        if planned.outcome == "TRUST" and planned.artifact is not None and planned.key is not None:
            return await self._trust(planned)
        if await self._inputs_brought(spec) and not again:
            return await self._plan_and_run(spec, on_event, again=True)
        return await self._run(planned, on_event)

    async def _inputs_brought(self, spec: StageSpec) -> bool:
        """Have the files of all inputs here; whether one of them had to be made again."""
        made_again = False
        for needed in sorted({read.stage for read in spec.reads.values()}):
            async with self._mending.setdefault(needed, asyncio.Lock()):
                try:
                    self.artifacts[needed] = await self.sharing.at_hand(self.artifacts[needed])
                except DamagedError as error:
                    if self.only is not None and needed in self.only:
                        raise
                    self.audience.say(f"warning: {error.message}; {needed} is made again")
                    [damaged] = [each for each in self.specs if each.name == needed]
                    await self._plan_and_run(damaged, lambda event: None)
                    made_again = True
        return made_again

    def _hit(self, spec: StageSpec, artifact: Artifact, note: str = "", seconds: float = 0.0) -> Artifact:
        self.artifacts[spec.name] = artifact
        key = artifact.manifest.fingerprint
        self._note(spec, "hit", (note,) if note else (), key, seconds, "")
        self.audience.finished(spec.name, "HIT", 0.0, f"{key}  {note}".rstrip())
        self._tell_overall()
        return artifact

    def _kept(self, spec: StageSpec, artifact: Artifact) -> Artifact:
        """Take an earlier run's artifact, and say so where what it was made of is another one by now."""
        made_of = artifact.manifest.key.inputs
        changed = {read.stage for role, read in spec.reads.items() if self._digest(read) != made_of.get(role)}
        stale = sorted(changed | self._stale & {read.stage for read in spec.reads.values()})
        if not stale:
            return self._hit(spec, artifact)
        self._stale.add(spec.name)
        return self._hit(spec, artifact, f"kept, although made from an earlier {', '.join(stale)}")

    def _digest(self, read: Read) -> str:
        return self.artifacts[read.stage].manifest.parts[read.part].digest

    async def _trust(self, planned: PlannedStage) -> Artifact:
        assert planned.artifact is not None and planned.key is not None
        artifact = await self.sharing.settled(self.store.adopt(planned.artifact, planned.key))
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
            self.forecast.event(spec.name, event)
            self.audience.event(spec.name, event)
            self._tell_overall()
            on_event(event)

        job = Job(
            spec,
            config,
            planned.key,
            inputs,
            self.store,
            force=spec.name in self.settings.force,
            niceness=SIDE_BY_SIDE_NICENESS if self._runs_beside_an_earlier_one(spec) else 0,
            run_id=self.run_id,
            environment=SHARING if self._shares_the_cores(spec) else {},
        )
        note_begun(self.store, self.run_id, spec.name, job.fingerprint)

        async def launch(asked: Job) -> Artifact:
            async with self.gpu_slot(spec, config, self.audience.say) as environment:
                with_gpu = replace(asked, environment={**asked.environment, **environment})
                return await self.backend.launch(with_gpu, both)

        try:
            artifact, made_here = await self.sharing.make(job, launch)
        except GlassworksError as error:
            seconds = time.monotonic() - clock
            stopped = isinstance(error, StopRequested)
            self.stopped |= stopped
            self._note(spec, "failed", planned.reasons, fingerprint(planned.key), seconds, str(error))
            self.audience.finished(spec.name, "STOPPED" if stopped else "FAILED", seconds, first_line(error))
            raise
        except asyncio.CancelledError:
            seconds = time.monotonic() - clock
            note = "cancelled; its checkpoint is kept"
            self._note(spec, "failed", planned.reasons, fingerprint(planned.key), seconds, note)
            self.audience.finished(spec.name, "STOPPED", seconds, "build again to go on")
            raise
        seconds = time.monotonic() - clock
        if not made_here:
            return self._hit(spec, artifact, "made by another host meanwhile", seconds)
        self.artifacts[spec.name] = artifact
        key = artifact.manifest.fingerprint
        self._note(spec, "ran", planned.reasons, key, seconds, "")
        self.audience.finished(spec.name, "done", seconds, key)
        return artifact

    def _runs_beside_an_earlier_one(self, spec: StageSpec) -> bool:
        """Whether a stage that trains, which `spec` does not wait for, stands before it and is still to end.

        Beside a short stage nothing gives way: priority that was given up cannot be taken back.
        """
        names = [each.name for each in self.specs]
        earlier = {each.name for each in self.specs[: names.index(spec.name)] if each.gpu != "none"}
        return bool(earlier - self.outcomes.keys() - upstream(spec.name, self.specs))

    def _shares_the_cores(self, spec: StageSpec) -> bool:
        """Whether a stage that neither needs `spec` nor is needed by it is still to end."""
        names = {each.name for each in self.specs} - self.outcomes.keys() - {spec.name}
        return bool(names - upstream(spec.name, self.specs) - downstream(spec.name, self.specs))

    def _tell_overall(self) -> None:
        self.audience.overall(self.forecast.describe())

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
        self.forecast.ended(spec.name, ran=outcome in ("ran", "failed"))

    def failure(self) -> GlassworksError | None:
        """The failures as one error, of their own kind if they are of one kind; None where all went well."""
        if not self.failures:
            return None
        kinds = {type(error) for error in self.failures.values()}
        kind = kinds.pop() if len(kinds) == 1 else GlassworksError
        told = [f"{name} failed: {error}" for name, error in self.failures.items()]
        return kind("\n".join(told))

    def record(self) -> RunRecord:
        """What this run was and did, so far."""
        missing = [spec.name for spec in self.specs if spec.name not in self.outcomes]
        left = {name: StageRecord(name=name, outcome="not reached") for name in missing}
        outcomes = [(self.outcomes | left)[spec.name] for spec in self.specs]
        bad = {o.outcome for o in outcomes} & {"failed", "not reached"}
        status: Status = "stopped" if self.stopped else "failed" if bad else "completed"
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
        """Write the run's record and report; returns the path of the HTML file. RetryableError: disk full."""
        try:
            report = write_report(self.store, self.record())
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise disk_full(f"the report of {self.run_id}", self.store.root) from error
        close_note(self.store, self.run_id)
        shared_record(self.store, self.run_id, self.audience.say)
        return report
