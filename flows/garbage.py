"""What the store can drop: artifacts that no kept run uses, and the leftovers of builds that nobody runs."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.records import read_record, run_ids
from flows.run_order import awaiting_a_record, lost_runs
from stages.runtime.lock import is_held
from stages.runtime.store import Store, read_manifest


@dataclass(frozen=True)
class Garbage:
    """One folder that can go, and why."""

    folder: Path
    reason: str
    num_bytes: int


def find_garbage(store: Store, keep_runs: int) -> list[Garbage]:
    """What neither the newest `keep_runs` runs, nor the newest that completed, nor a ref need. Only looks."""
    kept_runs = runs_to_keep(store, keep_runs)
    used = used_by(store, kept_runs) | awaiting_a_record(store)
    garbage = []
    for folder in sorted((store.root / "artifacts").glob("*/*/")):
        if (folder.parent.name, folder.name) not in used and not awaits_a_record(store, folder):
            garbage.append(Garbage(folder, "no kept run uses it", _size(folder)))
    for folder in sorted((store.root / "work").glob("*/*/")):
        if not is_held(folder.with_name(f"{folder.name}.lock")):
            garbage.append(Garbage(folder, "unfinished, and nobody is at it", _size(folder)))
    for run_id in run_ids(store):
        if run_id not in kept_runs:
            folder = store.root / "runs" / run_id
            garbage.append(Garbage(folder, "an old run's report", _size(folder)))
    for run_id in lost_runs(store):
        folder = store.root / "runs" / run_id
        garbage.append(Garbage(folder, "notes of a killed run", _size(folder)))
    return garbage


def runs_to_keep(store: Store, keep_runs: int) -> set[str]:
    """The newest `keep_runs` runs, the newest that completed, and those that a ref names."""
    kept = set(run_ids(store)[-keep_runs:]) if keep_runs else set()
    refs = (path for path in (store.root / "refs").rglob("*") if path.is_file())
    return kept | _newest_completed(store) | {path.read_text(encoding="utf-8").strip() for path in refs}


def used_by(store: Store, runs: set[str]) -> set[tuple[str, str | None]]:
    """Stage and fingerprint of every artifact that these runs used."""
    kept = (run_id for run_id in run_ids(store) if run_id in runs)
    return {(s.name, s.fingerprint) for run_id in kept for s in read_record(store, run_id).stages}


def _newest_completed(store: Store) -> set[str]:
    completed = (name for name in reversed(run_ids(store)) if read_record(store, name).status == "completed")
    return set(itertools.islice(completed, 1))


def awaits_a_record(store: Store, folder: Path) -> bool:
    """Whether the artifact is younger than any recorded run: its build was killed, the next will use it.

    For what no build has noted: somebody ran the stage by hand.
    """
    manifest, known = read_manifest(folder), run_ids(store)
    if manifest is None:
        return False
    return not known or manifest.provenance.started_at > read_record(store, known[-1]).started_at


def remove(store: Store, garbage: list[Garbage]) -> int:
    """Remove what was found; returns the bytes that were freed."""
    for item in garbage:
        shutil.rmtree(item.folder, ignore_errors=True)
        if item.folder.parent == store.root / "runs":
            item.folder.with_name(f"{item.folder.name}.json").unlink(missing_ok=True)
        if item.folder.parent.parent == store.root / "work":
            item.folder.with_name(f"{item.folder.name}.config.json").unlink(missing_ok=True)
    return sum(item.num_bytes for item in garbage)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
