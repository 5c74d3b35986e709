"""A run's record, manifests and events become its report: read and written here, drawn in `flows/report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_contracts.manifest import Manifest
from flows.report import essence, render_html, render_markdown
from flows.report.record import RunRecord
from flows.stores import described
from stages.runtime.events import EVENTS_NAME, read_events
from stages.runtime.store import Store, read_manifest, write_durably


def gather(store: Store, record: RunRecord) -> tuple[dict[str, Manifest], dict[str, list[dict[str, Any]]]]:
    """Manifests and events of a run's artifacts; of a stage that failed, the events that it left behind."""
    manifests: dict[str, Manifest] = {}
    events: dict[str, list[dict[str, Any]]] = {}
    for stage in record.stages:
        folder = described(store, stage.name, stage.fingerprint or "-")
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
