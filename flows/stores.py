"""The store that `--store` names: a folder, or `s3://BUCKET/PREFIX`; and what differs between the two.

    store = open_store("s3://models/nightly")       # or open_store("store")
    artifact = at_hand(store, artifact)             # its files are in a local folder now
    folder = described(store, stage, key)           # its manifest and events are
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.runtime.store import Artifact, Store

if TYPE_CHECKING:
    from flows.shared_store import SharedStore


def is_url(place: str) -> bool:
    """Whether it names shared storage and no folder."""
    return "://" in place


def open_store(place: str | Path) -> Store:
    """The store at `place`; of a shared one the run records are fetched.

    Raises UserError for an address that is none or may not be used, RetryableError where nobody answers.
    """
    if not is_url(str(place)):
        return Store(Path(place))
    from flows.shared_store import SharedStore

    store = SharedStore(str(place))
    store.storage.check()
    store.refresh_runs()
    return store


def local_store(place: str, why: str) -> Store:
    """The store at `place`, for what needs a folder. Raises UserError for a shared one."""
    if is_url(place):
        raise UserError(f"{place} is shared storage; {why}", hint="pass --store DIR with a folder")
    return Store(Path(place))


def shared(store: Store) -> SharedStore | None:
    """The store as a shared one, if it is one."""
    return store if hasattr(store, "url") else None  # type: ignore[return-value]


def store_name(store: Store) -> str:
    """What `--store` would have to say to name it again."""
    place = shared(store)
    return place.url if place is not None else str(store.root)


def at_hand(store: Store, artifact: Artifact) -> Artifact:
    """The artifact with all its files here. Raises what SharedStore.bring raises."""
    place = shared(store)
    return place.bring(artifact) if place is not None else artifact


def described(store: Store, stage: str, key: str) -> Path:
    """A folder with the artifact's manifest and events, if there is such an artifact."""
    place = shared(store)
    return place.described(stage, key) if place is not None else store.artifact_dir(stage, key)
