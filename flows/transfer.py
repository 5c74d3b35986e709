"""The files of one artifact on their way to shared storage or from there; whole files are not moved twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_contracts.manifest import FileEntry, Manifest
from flows.object_storage import ObjectStorage
from flows.storage_errors import Missing
from stages.runtime.errors import GlassworksError
from stages.runtime.store import file_sha256

#: Files on their way at once. More does not help: hashing has two cores, and a network has one line.
SIDE_BY_SIDE = 4

Stop = Callable[[], bool]


class DamagedError(GlassworksError):
    """What the storage holds of an artifact is not what its manifest says; it must be made or sent again."""


def never() -> bool:
    """For work that nobody can ask to stop."""
    return False


def folder_key(stage: str, key: str) -> str:
    """What the keys of an artifact begin with."""
    return f"artifacts/{stage}/{key}"


def file_key(stage: str, key: str, entry: FileEntry) -> str:
    """Where a file lies: under its own sha256, with its name for whoever looks at the bucket."""
    return f"{folder_key(stage, key)}/files/{entry.sha256}/{Path(entry.path).name}"


def is_whole(path: Path, entry: FileEntry) -> bool:
    """Whether the file is there as its manifest says, byte for byte."""
    return path.is_file() and path.stat().st_size == entry.num_bytes and file_sha256(path) == entry.sha256


@dataclass(frozen=True)
class Transfer:
    """One artifact between a bucket and a local folder."""

    storage: ObjectStorage
    manifest: Manifest
    folder: Path
    should_stop: Stop = never

    def send(self) -> None:
        """Send the files that the storage lacks. Raises DamagedError where a file is not whole here."""
        there = self.storage.listing(f"{folder_key(self.manifest.stage, self.manifest.fingerprint)}/files/")
        sizes = {key: stored.num_bytes for key, stored in there.items()}
        unique = {self._key(entry): entry for entry in self.manifest.files}
        self._for_each(
            [entry for key, entry in unique.items() if sizes.get(key) != entry.num_bytes], self._send
        )

    def fetch(self) -> None:
        """Fetch the files that are not in the folder yet, each checked against the manifest.

        Raises DamagedError where the storage has other bytes; they are removed there.
        """
        known = {entry.path for entry in self.manifest.files}
        for path in [p for p in self.folder.rglob("*") if p.is_file()]:
            if path.relative_to(self.folder).as_posix().removesuffix(".part") not in known:
                path.unlink()  # of an earlier attempt, before the artifact was made anew
        self._for_each(self.manifest.files, self._fetch)

    def _for_each(
        self, entries: list[FileEntry] | tuple[FileEntry, ...], move: Callable[[FileEntry], None]
    ) -> None:
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            moving = [pool.submit(self._unless_stopped, move, entry) for entry in entries]
            try:
                for each in moving:
                    each.result()
            finally:
                for each in moving:
                    each.cancel()

    def _unless_stopped(self, move: Callable[[FileEntry], None], entry: FileEntry) -> None:
        if self.should_stop():
            raise InterruptedError(f"stopped before {entry.path}")
        move(entry)

    def _key(self, entry: FileEntry) -> str:
        return file_key(self.manifest.stage, self.manifest.fingerprint, entry)

    def _send(self, entry: FileEntry) -> None:
        path = self.folder / entry.path
        if not is_whole(path, entry):
            raise DamagedError(f"{path} is not as its manifest says: it is not sent", hint="build again")
        self.storage.upload(self._key(entry), path, self.should_stop)

    def _fetch(self, entry: FileEntry) -> None:
        path = self.folder / entry.path
        if is_whole(path, entry):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        if part.exists() and part.stat().st_size >= entry.num_bytes and _put_in_place(part, path, entry):
            return
        for _ in range(2):  # bytes may also have been damaged on their way
            try:
                self.storage.download(self._key(entry), part, self.should_stop)
            except Missing:
                raise self._damaged(entry, "is missing") from None
            if _put_in_place(part, path, entry):
                return
        self.storage.delete(self._key(entry))
        raise self._damaged(entry, "is damaged: its sha256 differs from its manifest's; it was removed there")

    def _damaged(self, entry: FileEntry, what: str) -> DamagedError:
        name = f"{self.manifest.stage} {self.manifest.fingerprint}"
        return DamagedError(
            f"{self.storage.url}: {entry.path} of {name} {what}",
            hint="the next build makes it again, or a build on a host that has it whole sends it again",
        )


def _put_in_place(part: Path, path: Path, entry: FileEntry) -> bool:
    """Give a file that was fetched to its end its name; one that is not whole is removed."""
    if is_whole(part, entry):
        part.rename(path)
        return True
    part.unlink()
    return False
