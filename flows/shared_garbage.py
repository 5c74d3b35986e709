"""What the storage behind a shared store can drop, by the rules of a local store (flows/garbage.py)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_contracts.manifest import Manifest
from flows.garbage import awaits_a_record, runs_to_keep, used_by
from flows.run_order import awaiting_a_record
from flows.transfer import SIDE_BY_SIDE, file_key, folder_key
from stages.runtime.store import read_manifest

if TYPE_CHECKING:
    from flows.shared_store import SharedStore


@dataclass(frozen=True)
class RemoteGarbage:
    """Objects that can go together, and why."""

    name: str
    reason: str
    num_bytes: int
    keys: tuple[str, ...]
    """In the order in which they go: a manifest first, so that at no time it promises what is gone."""


def find_remote_garbage(store: SharedStore, keep_runs: int) -> list[RemoteGarbage]:
    """What no kept run needs, files that no manifest names any more, and uploads that were never finished.

    Only looks. What is found is only good while no build of any host runs.
    """
    kept = runs_to_keep(store, keep_runs)
    used = used_by(store, kept) | awaiting_a_record(store)
    sizes = {key: stored.num_bytes for key, stored in store.storage.listing("artifacts/").items()}
    folders: dict[tuple[str, str], list[str]] = {}
    for key in sizes:
        folders.setdefault((key.split("/")[1], key.split("/")[2]), []).append(key)
    garbage = []
    for (stage, key), keys in sorted(folders.items()):
        manifest = (
            read_manifest(store.described(stage, key))
            if f"{folder_key(stage, key)}/manifest.json" in keys
            else None
        )
        reason, unneeded = _judged(store, manifest, (stage, key) in used, keys)
        if unneeded:
            size = sum(sizes[each] for each in unneeded)
            garbage.append(RemoteGarbage(folder_key(stage, key), reason, size, tuple(unneeded)))
    return garbage + _old_runs(store, kept)


def _judged(
    store: SharedStore, manifest: Manifest | None, is_used: bool, keys: list[str]
) -> tuple[str, list[str]]:
    """Why something of an artifact's folder can go, and what."""
    manifest_first = sorted(keys, key=lambda key: "/files/" in key)
    if manifest is None:
        return "an upload that was never finished", manifest_first
    stage, key = manifest.stage, manifest.fingerprint
    if not is_used and not awaits_a_record(store, store.described(stage, key)):
        return "no kept run uses it", manifest_first
    named = {file_key(stage, key, entry) for entry in manifest.files}
    return "of an earlier run of the stage", [
        each for each in keys if "/files/" in each and each not in named
    ]


def _old_runs(store: SharedStore, kept: set[str]) -> list[RemoteGarbage]:
    runs: dict[str, list[tuple[str, int]]] = {}
    for key, stored in store.storage.listing("runs/").items():
        runs.setdefault(key.split("/")[1].removesuffix(".json"), []).append((key, stored.num_bytes))
    return [
        RemoteGarbage(
            f"runs/{name}", "an old run's record", sum(size for _, size in found), tuple(k for k, _ in found)
        )
        for name, found in sorted(runs.items())
        if name not in kept
    ]


def remove_remote(store: SharedStore, garbage: list[RemoteGarbage]) -> int:
    """Remove what was found; returns the bytes that were freed."""
    for item in garbage:
        store.storage.delete(item.keys[0])
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            list(pool.map(store.storage.delete, item.keys[1:]))
    return sum(item.num_bytes for item in garbage)
