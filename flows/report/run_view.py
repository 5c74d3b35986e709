"""One view of a run for all renderers: record, manifests and events, with repetitions taken out.

A stage that resumes appends to its events, so tables, samples and steps may stand there twice; the later one
counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_contracts.manifest import Manifest
from flows.report.record import RunRecord, StageRecord
from stages.catalog import STAGES

Event = dict[str, Any]
Curve = list[list[float]]


@dataclass(frozen=True)
class RunView:
    """Everything that a report may show."""

    record: RunRecord
    manifests: Mapping[str, Manifest]
    events: Mapping[str, Sequence[Event]]

    @property
    def stage_names(self) -> list[str]:
        """The stages of the record, then others that left something, in the order of the chain."""
        names = [stage.name for stage in self.record.stages]
        chain = [spec.name for spec in STAGES]
        known = [*chain, *sorted((self.manifests.keys() | self.events.keys()) - set(chain))]
        found = [name for name in known if name in self.manifests or name in self.events]
        return list(dict.fromkeys([*names, *found]))

    def stage(self, name: str) -> StageRecord:
        """The stage's record; one that says `not reached` where the run has none."""
        found = {stage.name: stage for stage in self.record.stages}
        return found.get(name, StageRecord(name=name, outcome="not reached"))

    def metric(self, stage: str, name: str) -> float | None:
        """A headline figure of a stage's manifest; None where it is missing or not finite."""
        manifest = self.manifests.get(stage)
        value = manifest.metrics.get(name) if manifest else None
        return value if value is not None and math.isfinite(value) else None

    def tables(self, stage: str) -> dict[str, Event]:
        """Name -> table, the last of each name."""
        return {event["name"]: event for event in self._of_kind(stage, "table")}

    def charts(self, stage: str) -> dict[str, Event]:
        """Name -> chart, the last of each name."""
        return {event["name"]: event for event in self._of_kind(stage, "chart")}

    def batch(self, stage: str) -> Event | None:
        """The first training batch; None where the stage showed none."""
        return next(reversed(self._of_kind(stage, "batch")), None)

    def samples(self, stage: str) -> list[Event]:
        """All samples, the last of each prompt, kind and step."""
        found = {
            (event["prompt"], event.get("kind", "text"), event.get("step")): event
            for event in self._of_kind(stage, "sample")
        }
        return list(found.values())

    def curves(self, stage: str) -> dict[str, Curve]:
        """Metric -> its [step, value] points in the order of the steps."""
        points: dict[str, dict[int, float]] = {}
        for event in self._of_kind(stage, "metrics"):
            for name, value in event["values"].items():
                if value is not None:
                    points.setdefault(name, {})[event["step"]] = value
        return {name: [[step, line[step]] for step in sorted(line)] for name, line in points.items()}

    def warnings(self, stage: str) -> list[str]:
        """What the stage warned of, each once."""
        logs = self._of_kind(stage, "log")
        return list(dict.fromkeys(event["message"] for event in logs if event.get("level") == "warning"))

    def messages(self, stage: str) -> list[str]:
        """What the stage said."""
        return [event["message"] for event in self._of_kind(stage, "log") if event.get("level") != "warning"]

    def last_progress(self, stage: str) -> Event | None:
        """How far a stage came."""
        return next(reversed(self._of_kind(stage, "progress")), None)

    def config(self, stage: str) -> dict[str, Any]:
        """The stage's configuration, from the record or else from the manifest."""
        manifest = self.manifests.get(stage)
        return self.record.configs.get(stage) or (manifest.config if manifest else {})

    def _of_kind(self, stage: str, kind: str) -> list[Event]:
        return [event for event in self.events.get(stage, ()) if event.get("event") == kind]
