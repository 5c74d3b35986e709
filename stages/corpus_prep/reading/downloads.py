"""Remote files on this disk: fetched once, resumed where a transfer broke, checked against their pin.

Each address has a folder of its own below the download folder: the file under its own name, `state.json` with
what is known of it, and `part` while it comes. The download folder is that of the variable
GLASSWORKS_DOWNLOADS, else `~/.cache/glassworks/downloads`.

A pinned file is never asked for again. Any other one is asked for its mark each time, and fetched again when
that has changed. With GLASSWORKS_OFFLINE set (a stage in a container has no network) what lies here counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.corpus_prep.reading.addresses import Address, parse_address
from stages.runtime.errors import RetryableError, UserError

if TYPE_CHECKING:  # it imports urllib, and most plans have no remote source
    from stages.corpus_prep.reading.remote_stores import RemoteState, RemoteStore

FOLDER_VARIABLE = "GLASSWORKS_DOWNLOADS"
OFFLINE_VARIABLE = "GLASSWORKS_OFFLINE"
BLOCK_BYTES = 1 << 20
NUM_ATTEMPTS = 4

#: (bytes so far, bytes in all or -1, address)
Progress = Callable[[int, int, str], None]


def downloads_folder() -> Path:
    """Where downloads lie unless the caller says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(FOLDER_VARIABLE) or f"{cache}/glassworks/downloads").expanduser()


@dataclass(frozen=True)
class Fetched:
    """What is known of a file that lies here."""

    url: str
    size: int
    mark: str
    sha256: str
    modified: int
    """Time of change of the copy, in ns: one that was touched is hashed again."""


class Downloads:
    """A download folder."""

    def __init__(self, folder: Path | None = None, progress: Progress | None = None) -> None:
        self.folder = folder or downloads_folder()
        self._progress = progress or (lambda _done, _total, _url: None)
        self._offline = bool(os.environ.get(OFFLINE_VARIABLE))

    def place(self, address: Address) -> Path:
        """Where the file lies, or will lie."""
        key = hashlib.sha256(str(address).encode()).hexdigest()[:24]
        name = address.url.partition("?")[0].rstrip("/").rpartition("/")[2] or "file"
        return self.folder / key / name

    def list(self, address: Address) -> list[Address]:
        """The files that an address stands for, sorted. Kept, to be answered without a network.

        Raises UserError for none, and for a sha256 of several.
        """
        kept = self.folder / hashlib.sha256(f"list {address}".encode()).hexdigest()[:24] / "list.json"
        if kept.exists() and (self._offline or address.commit):
            found = [parse_address(text) for text in json.loads(kept.read_text(encoding="utf-8"))]
        elif address.sha256 and not address.is_hub:
            found = [address]
        elif self._offline:
            raise _not_here(address, self.folder)
        else:
            found = _store_of(address).list(address)
            _write_json(kept, [str(file) for file in found])
        if not found:
            raise UserError(f"{address.url} holds no file", hint="look at the address")
        if address.sha256 and len(found) > 1:
            raise UserError(f"{address}: a sha256 pins one file, not {len(found)}", hint="name one of them")
        return found

    def digest(self, address: Address) -> str:
        """What the content counts by: its sha256, or the commit. What is not pinned is fetched for it."""
        if address.sha256:
            return address.sha256
        return address.commit or self.fetch(address).sha256

    def fetch(self, address: Address) -> Fetched:
        """Bring the file here, if it is not. Raises UserError for a sha256 that is not the pinned one."""
        place = self.place(address)
        known = _known(place)
        if known and (self._offline or address.sha256 or address.commit):
            return known  # before the lock: in a container the folder is read-only
        if self._offline:
            raise _not_here(address, self.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.parent / "lock"):
            known = _known(place)  # another process may have brought it meanwhile
            if known and (address.sha256 or address.commit):
                return known
            store = _store_of(address)
            state = store.state(address)
            if known and state.mark and (known.mark, known.size) == (state.mark, state.size):
                return known
            self._transfer(store, address, state, place)
            return _checked(address, state, place)

    def _transfer(self, store: RemoteStore, address: Address, state: RemoteState, place: Path) -> None:
        """Fill `part`, going on where it ends if it is of the same state; then give it its name."""
        part, about = place.parent / "part", place.parent / "part.json"
        started = json.loads(about.read_text(encoding="utf-8")) if about.exists() else None
        if started != asdict(state) or not state.mark:
            part.unlink(missing_ok=True)
            _write_json(about, asdict(state))
        for attempt in range(1, NUM_ATTEMPTS + 1):
            try:
                self._append(store, address, state, part)
                break
            except EOFError:
                part.unlink(missing_ok=True)
            except RetryableError:
                if attempt == NUM_ATTEMPTS:
                    raise
        part.replace(place)
        about.unlink(missing_ok=True)

    def _append(self, store: RemoteStore, address: Address, state: RemoteState, part: Path) -> None:
        done = part.stat().st_size if part.exists() else 0
        if done != state.size or done == 0:
            with part.open("ab") as out, store.open(address, done) as stream:
                for data in _blocks(stream, address):
                    out.write(data)
                    done += len(data)
                    self._progress(done, state.size, address.url)
        if 0 <= state.size != done:
            if done > state.size:
                part.unlink()
            raise RetryableError(
                f"{address.url}: the transfer ended after {done:,} of {state.size:,} bytes",
                hint="try again; what has come so far is kept",
            )


def _store_of(address: Address) -> RemoteStore:
    from stages.corpus_prep.reading.remote_stores import store_of

    return store_of(address)


def _blocks(stream: Any, address: Address) -> Iterator[bytes]:
    try:
        yield from iter(lambda: stream.read(BLOCK_BYTES), b"")
    except Exception as error:  # http.client, botocore and aiohttp have exceptions of their own
        if isinstance(error, EOFError):
            raise
        raise RetryableError(f"{address.url}: the transfer broke: {error}", hint="try again") from None


def _checked(address: Address, state: RemoteState, place: Path) -> Fetched:
    with place.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if address.sha256 and sha256 != address.sha256:
        place.unlink()
        raise UserError(
            f"{address.url} has sha256 {sha256}, and {address.sha256} was expected",
            hint="it is another file now; if that is the one you want, write its sha256 into the address",
        )
    status = place.stat()
    fetched = Fetched(address.url, status.st_size, state.mark, sha256, status.st_mtime_ns)
    _write_json(place.parent / "state.json", asdict(fetched))
    return fetched


def _known(place: Path) -> Fetched | None:
    """What lies here, if it is as it was when its sha256 was taken."""
    about = place.parent / "state.json"
    if not about.exists() or not place.exists():
        return None
    known = Fetched(**json.loads(about.read_text(encoding="utf-8")))
    status = place.stat()
    return known if (status.st_size, status.st_mtime_ns) == (known.size, known.modified) else None


def _not_here(address: Address, folder: Path) -> UserError:
    return UserError(
        f"{address.url} is not in {folder}, and {OFFLINE_VARIABLE} is set",
        hint="run `glassworks plan` once with a network, or take the variable away",
    )


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(value), encoding="utf-8")
    fresh.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: two builds may want the same file."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
