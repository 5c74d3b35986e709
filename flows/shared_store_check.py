"""What `glassworks doctor` says about a shared store: may we write there, and does it keep to conditions?"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from flows.checks import Check
from flows.storage_errors import Changed, Unsupported
from stages.runtime.errors import GlassworksError

if TYPE_CHECKING:
    from flows.object_storage import ObjectStorage
    from flows.shared_store import SharedStore

NAME = "shared store"
CAREFUL_STORAGE = (
    "builds do without: a claim is renewed right before it goes; AWS S3 and Ceph have conditional deletes"
)
OTHER_STORAGE = "use storage that has conditional writes: AWS S3, MinIO, Ceph, Cloudflare R2"


def check_shared(store: SharedStore) -> Check:
    """The storage answers, lets us read and write, and refuses a write whose condition does not hold.

    Storage that takes every write would let two hosts make the same artifact, and the later one win. One that
    removes whatever it is told to is only worth knowing of: claims do not rely on it (flows/claims.py).
    """
    try:
        store.storage.check()
        broken = _broken_promise(store.storage)
        careless = "" if broken else _careless_delete(store.storage)
    except GlassworksError as error:
        return Check(NAME, False, error.message, error.hint)
    if broken:
        return Check(NAME, False, broken, OTHER_STORAGE)
    if careless:
        return Check(NAME, False, f"{store.url} {careless}", CAREFUL_STORAGE, optional=True)
    return Check(NAME, True, f"{store.url}, here in {store.root}")


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


def _careless_delete(storage: ObjectStorage) -> str:
    """What is to be known of how the storage removes objects under a condition; empty where all is well."""
    key = f"claims/doctor/{secrets.token_hex(8)}.json"
    before = storage.create(key, b"1")
    try:
        now = storage.replace(key, b"2", before)
        if _takes(lambda: storage.delete(key, before)):
            return "removes an object that has changed (If-Match of a delete is not heeded)"
        return "" if _takes(lambda: storage.delete(key, now)) else "does not remove an object as it is"
    except Unsupported as error:
        return f"refuses conditions of a delete ({error.message})"
    finally:
        storage.delete(key)


def _takes(write: Callable[[], object]) -> bool:
    try:
        write()
    except Changed:
        return False
    return True
