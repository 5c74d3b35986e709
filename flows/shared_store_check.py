"""What `glassworks doctor` says about a shared store: may we write there, and does it keep to conditions?"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from flows.checks import Check
from flows.storage_errors import Changed
from stages.runtime.errors import GlassworksError

if TYPE_CHECKING:
    from flows.object_storage import ObjectStorage
    from flows.shared_store import SharedStore

NAME = "shared store"
OTHER_STORAGE = "use storage that has conditional writes: AWS S3, MinIO, Ceph, Cloudflare R2"


def check_shared(store: SharedStore) -> Check:
    """The storage answers, lets us read and write, and refuses a write whose condition does not hold.

    Storage that takes every write would let two hosts make the same artifact, and the later one win.
    """
    try:
        store.storage.check()
        broken = _broken_promise(store.storage)
    except GlassworksError as error:
        return Check(NAME, False, error.message, error.hint)
    return Check(NAME, not broken, broken or f"{store.url}, here in {store.root}", OTHER_STORAGE)


def _broken_promise(storage: ObjectStorage) -> str:
    """What the storage does that it must not; empty where all is well."""
    key = f"claims/doctor/{secrets.token_hex(8)}.json"
    etag = storage.create(key, b"1")
    try:
        if _takes(lambda: storage.create(key, b"2")):
            return f"{storage.url} writes over an object that must not be there yet (If-None-Match)"
        if storage.replace(key, b"3", etag) == etag or _takes(lambda: storage.replace(key, b"4", etag)):
            return f"{storage.url} writes over an object that has changed (If-Match)"
        return ""
    finally:
        storage.delete(key)


def _takes(write: Callable[[], object]) -> bool:
    try:
        write()
    except Changed:
        return False
    return True
