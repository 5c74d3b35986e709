"""The store that `--store` names: a folder, or `s3://BUCKET/PREFIX`; and what differs between the two.

store = open_store("s3://models/nightly")       # or open_store("store")
artifact = at_hand(store, artifact)             # its files are in a local folder now
folder = described(store, stage, key)           # its manifest and events are
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.runtime.store import Artifact, Store

if TYPE_CHECKING:
    from flows.shared_store import SharedStore


def is_url(place: str | Path) -> bool:
    """Whether it names shared storage and no folder."""
    return "://" in str(place)


def open_store(place: str | Path) -> Store:
    """The store at `place`; of a shared one the run records are fetched.

    Raises UserError for an address that is none or may not be used, RetryableError where nobody answers.
    """
    store = nearby_store(place)
    if (there := shared(store)) is not None:
        there.storage.check()
        there.refresh_runs()
    return store


def nearby_store(place: str | Path) -> Store:
    """The same without a word to the storage: for what needs nothing but this host's folder."""
    if not is_url(place):
        return Store(Path(place))
    from flows.shared_store import SharedStore  # the client takes a third of a second

    return SharedStore(str(place))


def local_store(place: str | Path, why: str) -> Store:
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


def mark_of(store: Store) -> str:
    """What tells this host's builds of the store from all others among the runs of one Prefect server."""
    place = shared(store)
    return f"store:{store.root}" + ("" if place is None else f" of {place.url} on {socket.gethostname()}")


def at_hand(store: Store, artifact: Artifact) -> Artifact:
    """The artifact with all its files here. Raises what SharedStore.bring raises."""
    place = shared(store)
    return place.bring(artifact) if place is not None else artifact


def described(store: Store, stage: str, key: str) -> Path:
    """A folder with the artifact's manifest and events, if there is such an artifact."""
    place = shared(store)
    return place.described(stage, key) if place is not None else store.artifact_dir(stage, key)
