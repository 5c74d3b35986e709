"""A store that several hosts share: a local folder in front of S3-compatible storage.

URL/artifacts/<stage>/<fingerprint>/files/<sha256>/<name>   what the artifact holds
URL/artifacts/<stage>/<fingerprint>/manifest.json           written last: without it there is no artifact
URL/runs/<run id>.json, runs/<run id>/report.*, refs/<name>  as in a local store
URL/claims/<stage>/<fingerprint>.json                        who is making it (flows/claims.py)

Files lie under their own sha256. So a file that is there need not be sent again, nobody can ever put other
bytes in the place of somebody's, and two hosts that send the same artifact at once help each other. The one
write that decides, the manifest's, is conditional.

Stages know nothing of this: they read and write the local folder, which is a whole store of its own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import md5, sha256
from pathlib import Path

from pydantic import ValidationError

from data_contracts.manifest import MANIFEST_NAME, KeyParts, Manifest
from flows.claims import Claims
from flows.object_storage import ObjectStorage, Stored
from flows.records import run_ids
from flows.storage_errors import Changed, Missing, endpoint
from flows.transfer import SIDE_BY_SIDE, DamagedError, Stop, Transfer, file_key, folder_key, is_whole, never
from stages.runtime.errors import RetryableError
from stages.runtime.events import EVENTS_NAME
from stages.runtime.fingerprint import fingerprint
from stages.runtime.lock import exclusive
from stages.runtime.store import Artifact, Store, commit, read_manifest, same_but_code, write_durably

CACHE_VARIABLE = "GLASSWORKS_CACHE"
MAX_RACES = 5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """An artifact as the storage has it."""

    manifest: Manifest
    etag: str
    missing: tuple[str, ...]
    """Files that are not there, or not with their size; whoever finds damaged bytes removes them."""


class SharedStore(Store):
    """A Store whose artifacts, runs and refs other hosts see too.

    `root` is this host's folder. All methods raise UserError for a wrong bucket or credentials and
    RetryableError where the storage does not answer.
    """

    def __init__(self, url: str, folder: Path | None = None, claims: Claims | None = None) -> None:
        self.storage = ObjectStorage(url)
        self.url = self.storage.url
        super().__init__(folder or local_folder(self.storage))
        self.claims = claims or Claims(self.storage, self.root / "claims")
        self._known: dict[str, set[str]] = {}

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
        objects = self.storage.listing(f"{folder_key(stage, key)}/")
        content = (
            self.storage.get(_manifest_key(stage, key)) if _manifest_key(stage, key) in objects else None
        )
        manifest = _parsed(content.data) if content is not None else None
        if content is None or manifest is None:
            return None
        write_durably(self._glimpse(stage, key) / MANIFEST_NAME, content.data.decode())
        there = {name: stored.num_bytes for name, stored in objects.items()}
        missing = tuple(e.path for e in manifest.files if there.get(file_key(stage, key, e)) != e.num_bytes)
        return Published(manifest, content.etag, missing)

    def artifacts(self, stage: str) -> Iterator[Artifact]:
        """All artifacts of a stage, here or there, oldest first; not checked for damage."""
        found = {artifact.manifest.fingerprint: artifact for artifact in super().artifacts(stage)}
        for key in self._known_there(stage) - found.keys():
            if manifest := read_manifest(self._glimpse(stage, key)):
                found[key] = Artifact(self.artifact_dir(stage, key), manifest)
        yield from sorted(found.values(), key=lambda a: (a.manifest.provenance.started_at, a.folder.name))

    def why_not(self, key: KeyParts) -> list[str]:
        """Why `key` is no hit; where the storage lacks files of it, that."""
        name = fingerprint(key)
        there = self.published(key.stage, name)
        if there is not None and there.missing and not self.artifact_dir(key.stage, name).is_dir():
            return [f"{path} is damaged or missing in {self.url}" for path in there.missing]
        return super().why_not(key)

    def find_trusting_code(self, key: KeyParts) -> Artifact | None:
        """As in `Store`, with all its files here."""
        for artifact in reversed(list(self.artifacts(key.stage))):
            same = same_but_code(artifact.manifest.key, key)
            found = self.find(key.stage, artifact.manifest.fingerprint) if same else None
            if found is not None:
                return self.bring(found)
        return None

    def _known_there(self, stage: str) -> set[str]:
        """The fingerprints that the storage has of a stage, their manifests fetched; asked once per
        program."""
        if stage not in self._known:
            keys = set(self.storage.folders(f"artifacts/{stage}/"))
            unseen = [key for key in keys if not (self._glimpse(stage, key) / MANIFEST_NAME).exists()]
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                list(pool.map(lambda key: self._glance(stage, key), unseen))
            self._known[stage] = keys
        return self._known[stage]

    def _glance(self, stage: str, key: str) -> Manifest | None:
        """Fetch a manifest and keep it; None where there is none that can be read."""
        content = self.storage.get(_manifest_key(stage, key))
        manifest = _parsed(content.data) if content is not None else None
        if content is not None and manifest is not None:
            write_durably(self._glimpse(stage, key) / MANIFEST_NAME, content.data.decode())
        return manifest

    def _glimpse(self, stage: str, key: str) -> Path:
        return self.root / "seen" / stage / key

    def described(self, stage: str, key: str) -> Path:
        """A local folder with the artifact's manifest and events, fetched if need be; the rest may be
        missing."""
        here, glimpse = self.artifact_dir(stage, key), self._glimpse(stage, key)
        if read_manifest(here) is not None or not key.strip("-"):
            return here
        manifest = read_manifest(glimpse) or self._glance(stage, key)
        events = (
            next((each for each in manifest.files if each.path == EVENTS_NAME), None) if manifest else None
        )
        if events is not None and not is_whole(glimpse / EVENTS_NAME, events):
            (glimpse / EVENTS_NAME).unlink(missing_ok=True)
            with suppress(Missing):
                self.storage.download(file_key(stage, key, events), glimpse / EVENTS_NAME, never)
        return glimpse

    # Moving

    def bring(self, artifact: Artifact, say: Say = print, should_stop: Stop = never) -> Artifact:
        """The artifact with all its files in the local folder: fetched, checked, and put in place by one
        rename.

        What an earlier attempt fetched is kept. Raises DamagedError where the storage holds other bytes than
        its manifest says (they are removed there, so that every host sees that it must be made again), and
        InterruptedError when `should_stop` turns true.
        """
        stage, key = artifact.manifest.stage, artifact.manifest.fingerprint
        work = self.work_dir(stage, f"{key}.fetch")
        with exclusive(work.with_name(f"{work.name}.lock"), say, should_stop):
            here = self.find_here(stage, key)
            if here is not None and not different_parts(here.manifest, artifact.manifest):
                return here
            there = self.published(stage, key)
            if there is None:
                raise DamagedError(f"{stage} {key} is not in {self.url} any more", hint="glassworks build")
            manifest = there.manifest
            size = sum(each.num_bytes for each in manifest.files) / 2**20
            say(f"fetching {stage} {key} from {self.url}: {len(manifest.files)} files, {size:,.1f} MiB")
            Transfer(self.storage, manifest, work, should_stop).fetch()
            commit(work, self.artifact_dir(stage, key), manifest)
            return Artifact(self.artifact_dir(stage, key), manifest)

    def publish(
        self, artifact: Artifact, replaces: str | None = None, say: Say = print, should_stop: Stop = never
    ) -> Artifact:
        """Send a local artifact: files first, the manifest last and only if nobody else's is there by then.

        Returns the artifact that counts: this one, or another host's that came first (with the same content,
        or `say` tells that it differs, and it is fetched). `replaces` is the tag of a manifest that may be
        written over: of what was there when a forced run began.
        """
        manifest = artifact.manifest
        stage, key = manifest.stage, manifest.fingerprint
        for _ in range(MAX_RACES):
            there = self.published(stage, key)
            if there is not None and not there.missing and there.etag != replaces:
                return self._accept(artifact, there, say, should_stop)
            Transfer(self.storage, manifest, artifact.folder, should_stop).send()
            data = (artifact.folder / MANIFEST_NAME).read_bytes()
            try:
                if there is None:
                    self.storage.create(_manifest_key(stage, key), data)
                else:
                    self.storage.replace(_manifest_key(stage, key), data, there.etag)
                return artifact
            except Changed:
                continue  # somebody was faster, or our own answer was lost on its way
        raise RetryableError(
            f"{stage} {key} in {self.url} changes all the time", hint="run the same command again"
        )

    def _accept(self, ours: Artifact, there: Published, say: Say, should_stop: Stop) -> Artifact:
        """Take what another host has published in the place of ours; the same thing, if all is well."""
        stage, key = ours.manifest.stage, ours.manifest.fingerprint
        if not (parts := different_parts(ours.manifest, there.manifest)):
            return ours
        say(f"warning: {stage} {key} came out otherwise on another host ({', '.join(parts)}); theirs counts")
        return self.bring(Artifact(ours.folder, there.manifest), say, should_stop)

    # Runs

    def refresh_runs(self) -> None:
        """Fetch the run records and refs that are not here yet; drop those that another host has dropped."""
        # Looked at before the listing: what another process sends meanwhile is in neither, and not dropped.
        sent_before = list(self._sent("x").parent.glob("*"))
        there = self.storage.listing("runs/") | self.storage.listing("refs/")
        for key, stored in there.items():
            path = self.root / key
            is_new = not _has_tag(path, stored) if key.startswith("refs/") else _is_new_record(key, path)
            content = self.storage.get(key) if is_new else None
            if content is not None:
                write_durably(path, content.data.decode())
        records = {name for name in (_run_of(key) for key in there) if name}
        for sent in [path for path in sent_before if path.name not in records]:
            (self.root / "runs" / f"{sent.name}.json").unlink(missing_ok=True)
            shutil.rmtree(self.root / "runs" / sent.name, ignore_errors=True)
            sent.unlink(missing_ok=True)
        for name in records:
            self._note_sent(name)

    def share_run(self, run_id: str) -> None:
        """Send a run's record and report, and those of earlier runs that could not be sent."""
        for name in run_ids(self):
            if name == run_id or not self._sent(name).exists():
                runs = self.root / "runs"
                for path in [*sorted((runs / name).glob("report.*")), runs / f"{name}.json"]:
                    self.storage.put(path.relative_to(self.root).as_posix(), path.read_bytes())
                self._note_sent(name)

    def _sent(self, run_id: str) -> Path:
        """Is there for each run whose record the storage has: one that goes missing there was dropped."""
        return self.root / "sent-runs" / run_id

    def _note_sent(self, run_id: str) -> None:
        self._sent(run_id).parent.mkdir(parents=True, exist_ok=True)
        self._sent(run_id).touch()

    def share_ref(self, name: str) -> None:
        """Send a ref."""
        self.storage.put(f"refs/{name}", (self.root / "refs" / name).read_bytes())


def local_folder(storage: ObjectStorage) -> Path:
    """This host's folder for a shared store: below GLASSWORKS_CACHE or the user's cache, named after it."""
    base = os.environ.get(CACHE_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glassworks"
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", storage.url.removeprefix("s3://"))
    mark = sha256(f"{endpoint()} {storage.url}".encode()).hexdigest()[:8]
    return (Path(base) if base else cache) / f"{readable}-{mark}"


def different_parts(ours: Manifest, theirs: Manifest) -> list[str]:
    """The parts whose content is not the same in two manifests of one artifact."""
    names = sorted(ours.parts.keys() | theirs.parts.keys())
    return [name for name in names if ours.parts.get(name) != theirs.parts.get(name)]


def _manifest_key(stage: str, key: str) -> str:
    return f"{folder_key(stage, key)}/{MANIFEST_NAME}"


def _parsed(data: bytes) -> Manifest | None:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return None


def _is_new_record(key: str, path: Path) -> bool:
    return bool(_run_of(key)) and not path.exists()


def _run_of(key: str) -> str:
    """The run whose record lies under a key; empty where none does."""
    is_record = key.startswith("runs/") and key.count("/") == 1 and key.endswith(".json")
    return key.removeprefix("runs/").removesuffix(".json") if is_record else ""


def _has_tag(path: Path, stored: Stored) -> bool:
    return path.exists() and md5(path.read_bytes(), usedforsecurity=False).hexdigest() == stored.etag.strip(
        '"'
    )
