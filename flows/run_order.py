"""In which order a store's runs came, and what a killed one was about to make: by no clock of any host.

A host's clock may be an hour off, or be set right between two builds. So a run's id is later than every id
that the store knows when the run begins (Lamport 1978, "Time, Clocks, and the Ordering of Events"): it is the
time of day only as long as that is later. Before a build starts a stage it notes what that will make. The
note of a build that was killed before it wrote its record keeps what it made from being cleared away.
"""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta

from flows.records import run_ids
from stages.runtime.store import Store, write_durably

ID_TIME = "%Y%m%d-%H%M%S"
ID_TIME_LENGTH = len("20260501-101530")
NOTE_NAME = "begun.json"


def new_run_id(store: Store, now: datetime | None = None) -> str:
    """Sorts after all runs of the store, and two builds of the same second differ: `20260501-101530-3f9a`."""
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    times = [time for name in _known(store) if (time := time_of(name)) is not None]
    if times and max(times) >= moment:
        moment = max(times) + timedelta(seconds=1)
    return f"{moment.strftime(ID_TIME)}-{secrets.token_hex(2)}"


def _known(store: Store) -> list[str]:
    """Ids of all runs, of those without a record too: a build that runs has a folder."""
    return sorted({path.name.removesuffix(".json") for path in (store.root / "runs").glob("*")})


def time_of(run_id: str) -> datetime | None:
    """The time that an id says; None for a name that somebody gave."""
    try:
        return datetime.strptime(run_id[:ID_TIME_LENGTH], ID_TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def note_begun(store: Store, run_id: str, stage: str, fingerprint: str) -> None:
    """Write down that a run is about to make an artifact."""
    note = store.root / "runs" / run_id / NOTE_NAME
    known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    write_durably(note, json.dumps(known | {stage: fingerprint}, indent=1))


def close_note(store: Store, run_id: str) -> None:
    """The run has its record: the note has served."""
    (store.root / "runs" / run_id / NOTE_NAME).unlink(missing_ok=True)


def awaiting_a_record(store: Store) -> set[tuple[str, str]]:
    """(stage, fingerprint) of what killed builds began after the newest run that has a record."""
    runs = store.root / "runs"
    newest = max(run_ids(store), default="")
    notes = [note for note in runs.glob(f"*/{NOTE_NAME}") if note.parent.name > newest]
    return {pair for note in notes for pair in json.loads(note.read_text(encoding="utf-8")).items()}


def lost_runs(store: Store) -> list[str]:
    """Killed builds that a later run has taken over from: their folders are of no use any more."""
    runs = store.root / "runs"
    recorded = set(run_ids(store))
    noted = {note.parent.name for note in runs.glob(f"*/{NOTE_NAME}")}
    return sorted(name for name in noted - recorded if name < max(recorded, default=""))
