"""Which inputs a configuration names, and what their content is: light enough for planning a build."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from stages.corpus_prep.harvest_files import harvested_packages
from stages.runtime.errors import UserError, did_you_mean

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
READABLE = " ".join(SUFFIXES)


class InputConfig(Protocol):
    """The settings that say where the input comes from."""

    @property
    def sources(self) -> Sequence[str]:
        """Paths, folders and globs; empty for the harvest."""

    @property
    def benchmark_sources(self) -> Sequence[str]:
        """The same for benchmark questions."""

    @property
    def packages(self) -> str | Sequence[str]:
        """What the harvest reads."""


@dataclass(frozen=True)
class SourceFile:
    """One input file: `name` is what records say they come from, `kind` its suffix without `.gz`."""

    name: str
    path: Path
    kind: str

    @property
    def is_compressed(self) -> bool:
        """Whether the file is gzip."""
        return self.path.suffix == ".gz"


def source_digests(config: InputConfig) -> dict[str, str]:
    """Name -> sha256 of everything that is read from outside the store.

    Own files count by their place in the list, their name and their content, not by their folder, so that a
    moved data set is still the same data set. Raises UserError for inputs that are not there.
    """
    digests: dict[str, str] = {}
    if config.sources:
        digests |= _file_digests("sources", config.sources)
    else:
        digests |= {f"package {p.name}": p.digest() for p in harvested_packages(config.packages)}
    if config.benchmark_sources:
        digests |= _file_digests("benchmark_sources", config.benchmark_sources)
    return digests


def _file_digests(setting: str, patterns: Sequence[str]) -> dict[str, str]:
    files = expand(setting, patterns)
    return {f"{index:03d} {file.name}": _digest(file.path) for index, file in enumerate(files)}


def _digest(path: Path) -> str:
    status = path.stat()
    return _content_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _content_digest(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand(setting: str, patterns: Sequence[str]) -> list[SourceFile]:
    """Files that the setting's paths, folders and globs name: in that order, each once, sorted inside each.

    setting: "sources" or "benchmark_sources", for messages. Raises UserError where a path does not exist, a
    glob matches nothing, a folder holds no readable file, or a file is of no known kind.
    """
    found: dict[Path, SourceFile] = {}
    for pattern in patterns:
        for path, name in _matches(setting, pattern):
            found.setdefault(path.resolve(), SourceFile(name, path, kind_of(path)))
    return _with_distinct_names(list(found.values()))


def kind_of(path: Path) -> str:
    """`.jsonl` for `x.jsonl` and `x.jsonl.gz`; "" where we cannot read it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def _matches(setting: str, pattern: str) -> Iterator[tuple[Path, str]]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        yield from _in_folder(setting, path)
    elif path.is_file():
        if not kind_of(path):
            raise UserError(
                f"corpus_prep.{setting}: {path} is of no kind that can be read",
                hint=f"readable: {READABLE}, each also as .gz",
            )
        yield path, path.name
    elif any(sign in pattern for sign in "*?["):
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 (absolute patterns)
        readable = [file for file in files if file.is_file() and kind_of(file)]
        if not readable:
            raise UserError(
                f"corpus_prep.{setting}: {pattern!r} matches no readable file ({len(files)} paths match)",
                hint=f"readable: {READABLE}, each also as .gz; quote the pattern in a shell",
            )
        yield from ((file, file.name) for file in readable)
    else:
        raise _missing(setting, path)


def _in_folder(setting: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Readable files below a folder, sorted by their path inside it; hidden ones are left out."""
    inside = [(path.relative_to(folder), path) for path in folder.rglob("*")]
    visible = [(rel, path) for rel, path in inside if not any(part.startswith(".") for part in rel.parts)]
    readable = [(rel, path) for rel, path in visible if path.is_file() and kind_of(path)]
    if not readable:
        others = sorted({path.suffix or path.name for _, path in visible if path.is_file()})[:6]
        raise UserError(
            f"corpus_prep.{setting}: the folder {folder} holds no readable file"
            + (f", only {' '.join(others)}" if others else " (it is empty)"),
            hint=f"readable: {READABLE}, each also as .gz",
        )
    yield from ((path, rel.as_posix()) for rel, path in sorted(readable, key=lambda item: item[0].parts))


def _missing(setting: str, path: Path) -> UserError:
    folder = path.parent
    siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    where = did_you_mean(path.name, siblings) if siblings else f"; there is no folder {folder} either"
    return UserError(
        f"corpus_prep.{setting}: {path} does not exist{where}",
        hint=f"give a file, a folder or a quoted glob; relative paths start from {Path.cwd()}",
    )


def _with_distinct_names(files: list[SourceFile]) -> list[SourceFile]:
    """Two files of one name from different folders get a number: records must say which they are from."""
    seen: dict[str, int] = {}
    named = []
    for file in files:
        seen[file.name] = seen.get(file.name, 0) + 1
        suffix = f" ({seen[file.name]})" if seen[file.name] > 1 else ""
        named.append(SourceFile(file.name + suffix, file.path, file.kind))
    return named
