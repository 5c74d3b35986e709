"""A store that several hosts share: a local folder in front of S3-compatible storage.

BUCKET/PREFIX/artifacts/<stage>/<fingerprint>/files/<sha256>/<name>   what the artifact holds
BUCKET/PREFIX/artifacts/<stage>/<fingerprint>/manifest.json           written last: without it there is no artifact
BUCKET/PREFIX/runs/<run id>.json, runs/<run id>/report.*, refs/<name>  as in a local store
BUCKET/PREFIX/claims/<stage>/<fingerprint>.json                        who is making it (flows/claims.py)

Files lie under their own sha256. So a file that is there need not be sent again, nobody can ever put other bytes
in the place of somebody's, and two hosts that send the same artifact at once help each other. The one write that
decides, the manifest's, is conditional.

Stages know nothing of this: they read and write the local folder, which is a whole store of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_contracts.manifest import MANIFEST_NAME, FileEntry, KeyParts, Manifest
from flows.claims import Claims
from flows.object_storage import ObjectStorage, Stored
from flows.storage_errors import Changed, Missing
from stages.runtime.errors import GlassworksError, RetryableError
from stages.runtime.events import EVENTS_NAME
from stages.runtime.fingerprint import fingerprint
from stages.runtime.lock import exclusive
from stages.runtime.store import Artifact, Store, commit, file_sha256, read_manifest, write_durably

CACHE_VARIABLE = "GLASSWORKS_CACHE"
#: Files on their way at once. More does not help: hashing has two cores, and a network has one line.
SIDE_BY_SIDE = 4
MAX_RACES = 5

Say = Callable[[str], None]
Stop = Callable[[], bool]


class DamagedError(GlassworksError):
    """What the storage holds of an artifact is not what its manifest says; the artifact must be made again."""


@dataclass(frozen=True)
class Published:
    """An artifact as the storage has it."""

    manifest: Manifest
    etag: str
    missing: tuple[str, ...]
    """Files that are not there, or not with their size; whoever finds damaged bytes removes them."""


def never() -> bool:
    """For work that nobody can ask to stop."""
    return False


class SharedStore(Store):
    """A Store whose artifacts, runs and refs other hosts see too.

    `root` is this host's folder. All methods raise UserError for a wrong bucket or credentials and RetryableError
    where the storage does not answer.
    """

    def __init__(self, url: str, folder: Path | None = None, claims: Claims | None = None) -> None:
        self.storage = ObjectStorage(url)
        self.url = self.storage.url
        super().__init__(folder or local_folder(self.storage))
        self.claims = claims or Claims(self.storage, self.root / "claims")

    # Looking

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact if it is whole here, byte for byte, or whole there, as far as a listing shows.

        In the second case its folder need not exist yet: `bring` it before you read from it.
        """
        return self.find_here(stage, key) or self.find_there(stage, key)

    def find_here(self, stage: str, key: str) -> Artifact | None:
        """The artifact if it is whole in the local folder."""
        return super().find(stage, key)

    def find_there(self, stage: str, key: str) -> Artifact | None:
        """The artifact if it is whole in the storage; fetches its manifest only."""
        there = self.published(stage, key)
        if there is None or there.missing:
            return None
        return Artifact(self.artifact_dir(stage, key), there.manifest)

    def published(self, stage: str, key: str) -> Published | None:
        """What the storage has of an artifact; None without a readable manifest."""
        raise NotImplementedError

    def artifacts(self, stage: str) -> Iterator[Artifact]:
        """All artifacts of a stage, here or there, oldest first; not checked for damage."""
        raise NotImplementedError

    def described(self, stage: str, key: str) -> Path:
        """A local folder with the artifact's manifest and events, fetched if need be; the rest may be missing."""
        raise NotImplementedError

    # Moving

    def bring(self, artifact: Artifact, say: Say = print, should_stop: Stop = never) -> Artifact:
        """The artifact with all its files in the local folder: fetched, checked, and put in place by one rename.

        What an earlier attempt fetched is kept. Raises DamagedError where the storage holds other bytes than its
        manifest says (they are removed there, so that every host sees that it must be made again), and
        InterruptedError when `should_stop` turns true.
        """
        raise NotImplementedError

    def publish(
        self, artifact: Artifact, replaces: str | None = None, say: Say = print, should_stop: Stop = never
    ) -> Artifact:
        """Send a local artifact: files first, the manifest last and only if nobody else's is there by then.

        Returns the artifact that counts: this one, or another host's that came first (with the same content, or
        `say` tells that it differs, and it is fetched). `replaces` is the tag of a manifest that may be written
        over: of what was there when a forced run began.
        """
        raise NotImplementedError

    # Runs

    def refresh_runs(self) -> None:
        """Fetch the run records and refs that are not here yet."""
        raise NotImplementedError

    def share_run(self, run_id: str) -> None:
        """Send a run's record and report, and those of earlier runs that could not be sent."""
        raise NotImplementedError
