"""Which inputs a configuration names, and what their content is: light enough for planning a build.

Remote sources count by content as well. One that is pinned (`#sha256=`, `@COMMIT`) is not fetched for a plan:
its pin says what the content is. One that is not is fetched when the build is planned, into the download
folder, and counts by the sha256 of what came: the build then uses exactly these bytes, and a plan on another
day asks the server whether there are others. An ETag alone is no content, so it only saves the transfer.
"""

from __future__ import annotations

import glob
import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from stages.corpus_prep.harvest_files import harvested_packages
from stages.corpus_prep.reading.addresses import Address, parse_address
from stages.corpus_prep.reading.damage import Reject
from stages.corpus_prep.reading.downloads import Downloads
from stages.corpus_prep.reading.kinds import COMPRESSIONS, READABLE, kind_of, why_refused
from stages.corpus_prep.reading.source_entries import SourceEntry, parse_entry
from stages.corpus_prep.reading.walking import walk
from stages.runtime.errors import UserError, did_you_mean

PACKED = f"{READABLE}; text also as {' '.join(COMPRESSIONS)}"


class InputConfig(Protocol):
    """The settings that say where the input comes from."""

    @property
    def sources(self) -> Sequence[str]:
        """Paths, folders, globs and addresses; empty for the harvest."""

    @property
    def benchmark_sources(self) -> Sequence[str]:
        """The same for benchmark questions."""

    @property
    def packages(self) -> str | Sequence[str]:
        """What the harvest reads."""


@dataclass(frozen=True)
class SourceFile:
    """One input file and the options of the entry that named it.

    name: what records say they come from. kind: its suffix without `.gz` and `.zst`. origin: its address, or
    for a local file its name inside what the user named, not the whole path, because a data set that moved is
    still the same and must give the same bytes.
    """

    name: str
    path: Path
    kind: str
    weight: float = 1.0
    max_megabytes: float = 0.0
    language: str = ""
    licence: str = ""
    filters: tuple[str, ...] = ()
    text_field: str = ""
    title_field: str = ""
    origin: str = ""
    address: Address | None = None
    options: str = ""
    entry: int = 0
    """Place of the entry that named it, for limits that its files share."""

    @property
    def compression(self) -> str:
        """ "gzip", "zstd" or ""."""
        return COMPRESSIONS.get(self.path.suffix.lower(), "")

    @property
    def is_compressed(self) -> bool:
        """Whether the file is packed."""
        return bool(self.compression)


@dataclass(frozen=True)
class Listing:
    """What the entries name: files to read, and what lies beside them and is not read, with the reason."""

    files: list[SourceFile]
    refused: list[Reject]


def source_digests(config: InputConfig) -> dict[str, str]:
    """Name -> sha256 (or commit) of everything that is read from outside the store, and the options given.

    Own files count by their place in the list, their name and their content, not by their folder, so that a
    moved data set is still the same data set. Raises UserError for inputs that are not there.
    """
    digests: dict[str, str] = {}
    if config.sources:
        digests |= file_digests("sources", config.sources)
    else:
        digests |= {f"package {p.name}": p.digest() for p in harvested_packages(config.packages)}
    if config.benchmark_sources:
        digests |= file_digests("benchmark_sources", config.benchmark_sources)
    return digests


def file_digests(setting: str, patterns: Sequence[str]) -> dict[str, str]:
    """Name -> digest of the files that a setting names, and of their options."""
    downloads = Downloads()
    listing = survey(setting, patterns, downloads)
    digests: dict[str, str] = {}
    for index, file in enumerate(listing.files):
        digest = downloads.digest(file.address) if file.address else _digest(file.path)
        digests[f"{index:03d} {file.name}"] = digest
        # The size limit is shared out among entries first, so which files one entry names decides, too.
        entry = f"entry={file.entry}" if file.entry else ""
        about = ";".join(filter(None, (entry, file.options, file.origin if file.address else "")))
        if about:
            digests[f"{index:03d} {file.name} options"] = about
    # What is refused by its name alone is a reject of the artifact, and counts by that name.
    return digests | {f"refused {reject.path}": reject.reason for reject in listing.refused}


def _digest(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for somebody who writes
            return "no file"
        return _content_digest(path, status.st_size, status.st_mtime_ns)
    except PermissionError:  # reading it is damage, which the stage reports or stops at, as it is told
        return "no permission"
    except OSError:
        return "no file"


@lru_cache(maxsize=4096)
def _content_digest(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand(setting: str, patterns: Sequence[str], downloads: Downloads | None = None) -> list[SourceFile]:
    """The files of `survey`; remote ones are here afterwards."""
    downloads = downloads or Downloads()
    files = survey(setting, patterns, downloads).files
    for file in files:
        if file.address:
            downloads.fetch(file.address)
    return files


def survey(setting: str, patterns: Sequence[str], downloads: Downloads | None = None) -> Listing:
    """What the setting's entries name: in that order, each file once, sorted inside each; nothing is fetched.

    setting: "sources" or "benchmark_sources", for messages. Raises UserError where a path does not exist, a
    glob matches nothing, a folder holds no readable file, or a file that is named is of no known kind.
    """
    downloads = downloads or Downloads()
    found: dict[Path, SourceFile] = {}
    refused: dict[str, Reject] = {}
    for index, pattern in enumerate(patterns):
        entry = parse_entry(setting, pattern)
        for file in _files(setting, entry, downloads):
            if isinstance(file, Reject):
                refused.setdefault(file.path, file)
            else:
                found.setdefault(_resolved(file.path), _with_options(file, entry, index))
    return Listing(_with_distinct_names(list(found.values())), list(refused.values()))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # a link that leads to itself
        return path.absolute()


def _with_options(file: SourceFile, entry: SourceEntry, index: int) -> SourceFile:
    return replace(
        file,
        kind=entry.kind or file.kind,
        weight=entry.weight,
        max_megabytes=entry.max_megabytes,
        language=entry.language,
        licence=entry.licence,
        filters=entry.filters,
        text_field=entry.text_field,
        title_field=entry.title_field,
        options=entry.options,
        entry=index,
    )


def _files(setting: str, entry: SourceEntry, downloads: Downloads) -> Iterator[SourceFile | Reject]:
    path = Path(entry.path).expanduser()
    if entry.is_remote:
        yield from _remote(setting, entry, downloads)
    elif path.is_dir():
        yield from _in_folder(setting, entry, path)
    elif _is_there(path):
        if not (entry.kind or kind_of(path)):
            raise UserError(
                f"corpus_prep.{setting}: {path} cannot be read: {why_refused(path)}",
                hint=f"readable: {PACKED}; for text of another name: '{path};kind=txt'",
            )
        yield SourceFile(path.name, path, kind_of(path))
    elif any(sign in entry.path for sign in "*?["):
        yield from _matching(setting, entry, path)
    else:
        raise _missing(setting, path)


def _is_there(path: Path) -> bool:
    """Also what is no regular file: reading it is damage, with a reason."""
    try:
        return path.exists() or path.is_symlink()
    except (OSError, RuntimeError):
        return True


def _refused(path: Path, name: str) -> Reject:
    return Reject(name, "unknown_kind", why_refused(path))


def _matching(setting: str, entry: SourceEntry, pattern: Path) -> Iterator[SourceFile | Reject]:
    matches = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (absolute patterns)
    files = [path for path in map(Path, matches) if path.is_file()]
    readable = [path for path in files if entry.kind or kind_of(path)]
    if not readable:
        raise UserError(
            f"corpus_prep.{setting}: {entry.path!r} matches no readable file ({len(matches)} paths match)",
            hint=f"readable: {PACKED}; quote the pattern in a shell",
        )
    yield from (SourceFile(path.name, path, kind_of(path)) for path in readable)
    yield from (_refused(path, path.name) for path in files if path not in set(readable))


def _in_folder(setting: str, entry: SourceEntry, folder: Path) -> Iterator[SourceFile | Reject]:
    """Readable files below a folder, sorted by their path inside it; hidden ones are left out."""
    inside = list(walk(folder))
    files = [e for e in inside if not e.problem]
    readable = [e for e in files if entry.kind or kind_of(e.path)]
    if not readable:
        others = sorted({e.path.suffix or e.path.name for e in files})[:6]
        raise UserError(
            f"corpus_prep.{setting}: the folder {folder} holds no readable file"
            + (f", only {' '.join(others)}" if others else " (it is empty)"),
            hint=f"readable: {PACKED}",
        )
    yield from (SourceFile(e.name, e.path, kind_of(e.path)) for e in readable)
    for e in inside:
        if e.problem:
            yield Reject(
                e.name, e.problem, "a folder, pipe, socket, device or broken link that cannot be read"
            )
        elif not (entry.kind or kind_of(e.path)):
            yield _refused(e.path, e.name)


def _remote(setting: str, entry: SourceEntry, downloads: Downloads) -> Iterator[SourceFile | Reject]:
    found = downloads.list(parse_address(entry.path))
    readable = [a for a in found if entry.kind or kind_of(downloads.place(a))]
    if not readable:
        raise UserError(
            f"corpus_prep.{setting}: {entry.path} holds no readable file ({len(found)} of other kinds)",
            hint=f"readable: {PACKED}; for text of another name: '{entry.path};kind=txt'",
        )
    for address in found:
        place = downloads.place(address)
        name = address.path or place.name
        if address in readable:
            yield SourceFile(name, place, kind_of(place), origin=str(address), address=address)
        else:
            yield _refused(place, str(address))


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
        name = file.name + (f" ({seen[file.name]})" if seen[file.name] > 1 else "")
        named.append(replace(file, name=name, origin=file.origin or name))
    return named
