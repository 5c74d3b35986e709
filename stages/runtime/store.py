"""The artifact store: immutable folders, committed by one rename, found again by fingerprint.

STORE/artifacts/<stage>/<fingerprint>/   files + manifest.json (written last)
STORE/work/<stage>/<fingerprint>/        in progress: lock, checkpoints, events, unfinished output
STORE/runs/<run id>.json                 which artifacts a run used
STORE/refs/<name>                        a run id pinned by name
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from data_contracts.manifest import MANIFEST_NAME, FileEntry, KeyParts, Manifest
from stages.runtime.errors import UserError, did_you_mean
from stages.runtime.fingerprint import explain_difference, fingerprint


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[FileEntry]:
    """Every file below `folder` but the manifest, sorted by path, with its size and sha256."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME)
    return [
        FileEntry(path=p.relative_to(folder).as_posix(), num_bytes=p.stat().st_size, sha256=file_sha256(p))
        for p in found
    ]


def part_digest(files: Sequence[FileEntry], part: str) -> str:
    """sha256 over (path inside the part, sha256) of the part's files."""
    prefix = f"{part}/"
    lines = [f"{f.path[len(prefix) :]} {f.sha256}" for f in files if f.path.startswith(prefix)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artifact folder; None where there is none or it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def damage(folder: Path, manifest: Manifest, part: str | None = None) -> list[str]:
    """What is not as the manifest says: missing files, wrong sizes, wrong bytes. Reads every byte."""
    problems = []
    for entry in manifest.files:
        if part is not None and not entry.path.startswith(f"{part}/"):
            continue
        path = folder / entry.path
        if not path.is_file():
            problems.append(f"{entry.path} is missing")
        elif (size := path.stat().st_size) != entry.num_bytes:
            problems.append(f"{entry.path} has {size} bytes, its manifest says {entry.num_bytes}")
        elif file_sha256(path) != entry.sha256:
            problems.append(f"{entry.path} is damaged: its sha256 differs from its manifest's")
    return problems


@dataclass(frozen=True)
class Artifact:
    """A whole artifact: its folder and manifest."""

    folder: Path
    manifest: Manifest

    def part(self, name: str) -> Path:
        """The folder of one part."""
        return self.folder / name


class Store:
    """The store below one folder. Creating the object touches nothing on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def artifact_dir(self, stage: str, key: str) -> Path:
        """Where the artifact with fingerprint `key` lives, or will."""
        return self.root / "artifacts" / stage / key

    def work_dir(self, stage: str, key: str) -> Path:
        """Where it is made."""
        return self.root / "work" / stage / key

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact if it is there and whole, byte for byte; else None."""
        folder = self.artifact_dir(stage, key)
        manifest = read_manifest(folder)
        if manifest is None or damage(folder, manifest):
            return None
        return Artifact(folder, manifest)

    def faults(self, stage: str, key: str) -> list[str]:
        """Why `find` finds nothing: no such folder, no manifest, or what is not as the manifest says."""
        folder = self.artifact_dir(stage, key)
        if not folder.is_dir():
            return [f"{folder} is not there"]
        manifest = read_manifest(folder)
        return damage(folder, manifest) if manifest else ["its manifest is missing or unreadable"]

    def artifacts(self, stage: str) -> Iterator[Artifact]:
        """All artifacts of a stage with a readable manifest, oldest first; not checked for damage."""
        folders = (self.root / "artifacts" / stage).glob("*/")
        read = [(folder, read_manifest(folder)) for folder in folders]
        whole = [Artifact(folder, manifest) for folder, manifest in read if manifest is not None]
        yield from sorted(whole, key=lambda a: (a.manifest.provenance.started_at, a.folder.name))

    def nearest(self, key: KeyParts) -> Artifact | None:
        """The stage's artifact whose key differs least from `key`; the younger one of equals."""
        candidates = list(self.artifacts(key.stage))
        return min(
            reversed(candidates),
            key=lambda a: len(explain_difference(a.manifest.key, key)),
            default=None,
        )

    def why_not(self, key: KeyParts) -> list[str]:
        """Why `key` is no hit: damage, the fields that differ from the nearest artifact, or `never built`."""
        if self.artifact_dir(key.stage, fingerprint(key)).is_dir():
            return self.faults(key.stage, fingerprint(key))
        near = self.nearest(key)
        return ["never built in this store"] if near is None else explain_difference(near.manifest.key, key)

    def find_trusting_code(self, key: KeyParts) -> Artifact | None:
        """A whole artifact that differs from `key` in nothing but code and packages."""
        for artifact in reversed(list(self.artifacts(key.stage))):
            if same_but_code(artifact.manifest.key, key) and not damage(artifact.folder, artifact.manifest):
                return artifact
        return None

    def adopt(self, artifact: Artifact, key: KeyParts) -> Artifact:
        """Enter an artifact under the fingerprint of `key` too; its manifest says which code was trusted."""
        before, after = _all_code(artifact.manifest.key), _all_code(key)
        trusted = {
            name: [before.get(name, ""), after.get(name, "")]
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        }
        update = {"key": key, "fingerprint": fingerprint(key), "trusted_code": trusted, "manifest_version": 2}
        manifest = artifact.manifest.model_copy(update=update)
        staged = self.work_dir(key.stage, manifest.fingerprint) / f"adopt-{uuid.uuid4().hex}"
        shutil.copytree(artifact.folder, staged, copy_function=_link_or_copy)
        (staged / MANIFEST_NAME).unlink()  # a hard link: writing through it would change the original
        folder = self.artifact_dir(key.stage, manifest.fingerprint)
        commit(staged, folder, manifest)
        with contextlib.suppress(OSError):  # not empty: somebody builds it, and has checkpoints there
            staged.parent.rmdir()
        return Artifact(folder, manifest)

    def resolve_part(self, folder: Path) -> tuple[Artifact, str]:
        """The artifact and part name that a part's folder belongs to. Raises UserError if it is none."""
        manifest = read_manifest(folder.parent)
        if manifest is None:
            raise UserError(
                f"{folder} is no part of an artifact: {folder.parent} has no readable {MANIFEST_NAME}",
                hint="pass STORE/artifacts/<stage>/<fingerprint>/<part>",
            )
        if folder.name not in manifest.parts:
            known = ", ".join(manifest.parts)
            guess = did_you_mean(folder.name, manifest.parts)
            raise UserError(f"{folder.parent} has no part {folder.name!r}{guess}", hint=f"its parts: {known}")
        return Artifact(folder.parent, manifest), folder.name


def same_but_code(old: KeyParts, new: KeyParts) -> bool:
    """Whether two keys differ in nothing but code, ours or that of packages."""
    return old.model_copy(update={"code": new.code, "packages": new.packages}) == new


def _all_code(key: KeyParts) -> dict[str, str]:
    return key.code | {f"package {name}": version for name, version in key.packages.items()}


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def commit(staged: Path, folder: Path, manifest: Manifest) -> None:
    """Turn a staged folder into an artifact: manifest last, everything on disk, then `move_into_place`."""
    _write_manifest(staged, manifest)
    _sync_tree(staged)
    move_into_place(staged, folder, aside=staged.parent)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_durably(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")


def move_into_place(staged: Path, folder: Path, aside: Path) -> None:
    """Rename `staged`, whole and on disk, to `folder`; what was there goes to `aside` and is removed.

    But the parts that are there stay where they are the same, byte for byte: another stage may be reading
    them, and a container has the folder itself mounted. Only what tells of the run is replaced then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (made := read_manifest(staged)) is not None and _has_the_parts_of(made, folder):
        _retell(staged, made, folder)
        return
    old: Path | None = None
    if folder.exists():
        old = aside / f"damaged-{uuid.uuid4().hex}"
        folder.rename(old)
    staged.rename(folder)
    _sync(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _has_the_parts_of(made: Manifest, folder: Path) -> bool:
    there = read_manifest(folder)
    return (
        there is not None
        and there.key == made.key
        and there.parts == made.parts
        and not damage(folder, there)
    )


def _retell(staged: Path, made: Manifest, folder: Path) -> None:
    """Replace the files beside the parts. At each moment the manifest there lists what is there, no more."""
    beside = [entry for entry in made.files if entry.path.partition("/")[0] not in made.parts]
    _write_manifest(
        folder, made.model_copy(update={"files": tuple(e for e in made.files if e not in beside)})
    )
    for entry in beside:  # copied: cut short anywhere, `staged` is whole and can be moved again
        write_durably(folder / entry.path, (staged / entry.path).read_text(encoding="utf-8"))
    _write_manifest(folder, made)
    shutil.rmtree(staged, ignore_errors=True)


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that a crash leaves either the old content or the new, never a mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_dir():
            path.chmod(
                0o755 if path.is_dir() else 0o644
            )  # safetensors writes 0600: unreadable for other users
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_run(store: Store, run_id: str, record: dict[str, object]) -> Path:
    """Record what a run used; run records are what garbage collection keeps artifacts for."""
    path = store.root / "runs" / f"{run_id}.json"
    write_durably(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
