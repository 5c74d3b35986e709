"""Where remote files lie: how to ask for their size and mark, to list a folder, and to read from an offset.

`https://` and the hub are read with the standard library and need no package; everything else through
fsspec, which finds s3fs, gcsfs and others where they are installed.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import IO, Any, Protocol, cast

from stages.corpus_prep.reading.addresses import Address
from stages.runtime.errors import RetryableError, UserError

TIMEOUT_SECONDS = 60
_PACKAGES = {"s3": "s3fs (pip install 'glassworks[s3]')", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


@dataclass(frozen=True)
class RemoteState:
    """size: in bytes, -1 where the server does not say; mark: ETag or time of change, "" for none."""

    size: int
    mark: str


class RemoteStore(Protocol):
    """What each kind of store can do."""

    def list(self, address: Address) -> list[Address]:
        """Files below a folder, or that match a glob; the address itself if it is a file. Sorted."""

    def state(self, address: Address) -> RemoteState:
        """Raises UserError for a file that is not there, RetryableError for a server that does not answer."""

    def open(self, address: Address, offset: int) -> IO[bytes]:
        """The bytes from `offset` on. Raises as `state` does; EOFError for a server that cannot do that."""


def store_of(address: Address) -> RemoteStore:
    """The store that an address lies in."""
    if address.is_hub:
        return HubStore()
    return WebStore() if address.scheme in ("http", "https") else FsspecStore()


class WebStore:
    """A web server. It cannot be listed."""

    def list(self, address: Address) -> list[Address]:
        """Only the address itself. Raises UserError for a glob."""
        if address.is_pattern or address.url.endswith("/"):
            raise UserError(
                f"{address.url} names several files, and a web server does not list its files",
                hint="name each file; or use s3:// or hf://, which can be listed",
            )
        return [address]

    def state(self, address: Address) -> RemoteState:
        """By HEAD, or by GET where the server does not answer that."""
        try:
            answer = self._ask(address, method="HEAD")
        except UserError:
            answer = self._ask(address)
        with answer:
            headers = answer.headers
            return RemoteState(int(headers.get("Content-Length") or -1), _mark(headers))

    def open(self, address: Address, offset: int) -> IO[bytes]:
        """By GET with a Range."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self._ask(address, headers=headers)
        if offset and answer.status != 206:
            answer.close()
            raise EOFError(f"{address.url} cannot be read from the middle")
        return cast("IO[bytes]", answer)

    def _ask(self, address: Address, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
        request = urllib.request.Request(self._place(address), method=method, headers=headers or {})
        self._sign(request)
        return _answer(request, address)

    def _place(self, address: Address) -> str:
        return address.url

    def _sign(self, request: urllib.request.Request) -> None:
        request.add_header("Accept-Encoding", "identity")


def _mark(headers: Any) -> str:
    return str(headers.get("X-Linked-ETag") or headers.get("ETag") or headers.get("Last-Modified") or "")


def _answer(request: urllib.request.Request, address: Address) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code in (408, 429) or error.code >= 500:
            raise _no_answer(address, error) from None
        raise UserError(f"{address.url}: {error.code} {error.reason}", hint=_hint(error.code)) from None
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from None


def _hint(code: int) -> str:
    if code in (401, 403):
        return "it wants a login; for the hub, set HF_TOKEN"
    return "look at the address; for the hub, at the revision and the path as well"


def _no_answer(address: Address, error: Exception) -> RetryableError:
    said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return RetryableError(
        f"{address.url} could not be read: {said}",
        hint="try again; what has come is kept. What is pinned (#sha256=, @COMMIT) is asked for only once",
    )


class HubStore(WebStore):
    """The Hugging Face hub, or a mirror of it that HF_ENDPOINT names."""

    def list(self, address: Address) -> list[Address]:
        """Files of a data set at one commit; the branch, if one is named, is looked up."""
        address = self.resolved(address)
        last = address.path.rpartition("/")[2]
        if not address.is_pattern and "." in last:
            return [address]
        folder = _plain_part(address.path)
        pattern = address.path if address.is_pattern else ""
        found = [
            replace(self._at(address, entry["path"]), sha256=(entry.get("lfs") or {}).get("oid", ""))
            for entry in self._tree(address, folder)
            if entry["type"] == "file" and (not pattern or fnmatch.fnmatchcase(entry["path"], pattern))
        ]
        return sorted(found, key=lambda a: a.path)

    def resolved(self, address: Address) -> Address:
        """The address at the commit that its branch or tag points to now."""
        if address.commit:
            return self._at(address, address.path)
        url = f"{_endpoint()}/api/datasets/{address.repository}/revision/{_quoted(address.revision, '')}"
        told, _ = self._json(address, url)
        return self._at(replace(address, revision=str(told["sha"])), address.path)

    def _at(self, address: Address, path: str) -> Address:
        url = f"hf://datasets/{address.repository}@{address.revision}/{path}"
        return replace(address, url=url, path=path)

    def _tree(self, address: Address, folder: str) -> Iterator[dict[str, Any]]:
        place = f"{address.repository}/tree/{address.revision}/{_quoted(folder)}".rstrip("/")
        url = f"{_endpoint()}/api/datasets/{place}?recursive=true"
        while url:
            entries, link = self._json(address, url)
            yield from entries
            following = re.search(r'<([^>]+)>;\s*rel="next"', link)
            url = following[1] if following else ""

    def _json(self, address: Address, url: str) -> tuple[Any, str]:
        request = urllib.request.Request(url)
        self._sign(request)
        with _answer(request, address) as answer:
            return json.loads(answer.read()), answer.headers.get("Link") or ""

    def _place(self, address: Address) -> str:
        place = f"{address.repository}/resolve/{_quoted(address.revision, '')}/{_quoted(address.path)}"
        return f"{_endpoint()}/datasets/{place}"

    def _sign(self, request: urllib.request.Request) -> None:
        super()._sign(request)
        if token := os.environ.get("HF_TOKEN"):
            # Not sent on to the storage that the hub redirects to.
            request.add_unredirected_header("Authorization", f"Bearer {token}")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _quoted(path: str, safe: str = "/") -> str:
    return urllib.parse.quote(path, safe=safe)


def _plain_part(path: str) -> str:
    """The folders of a path before the first sign of a glob."""
    plain = []
    for part in path.split("/"):
        if any(sign in part for sign in "*?["):
            break
        plain.append(part)
    return "/".join(plain)


class FsspecStore:
    """Anything that fsspec knows; credentials and endpoints come from the usual variables of each."""

    def list(self, address: Address) -> list[Address]:
        """By glob, or all files below a folder."""
        files = self._files(address)
        try:
            if address.is_pattern:
                found = files.glob(address.url)
            else:
                found = [address.url] if files.isfile(address.url) else files.find(address.url)
        except OSError as error:
            raise self._refused(address, error) from None
        urls = sorted(files.unstrip_protocol(path) for path in found)
        return [replace(address, url=url) for url in urls if not url.endswith("/")]

    def state(self, address: Address) -> RemoteState:
        """By the store's own information."""
        try:
            info = self._files(address).info(address.url)
        except OSError as error:
            raise self._refused(address, error) from None
        mark = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
        return RemoteState(int(info.get("size") or 0), str(mark))

    def open(self, address: Address, offset: int) -> IO[bytes]:
        """Read ahead in blocks of 8 MB."""
        try:
            stream = self._files(address).open(address.url, "rb", block_size=8 << 20)
            stream.seek(offset)
        except OSError as error:
            raise self._refused(address, error) from None
        return cast("IO[bytes]", stream)

    def _files(self, address: Address) -> Any:
        package = _PACKAGES.get(address.scheme, "the fsspec package for it")
        try:
            # Not a plain import, so that its version is not in the fingerprint: what it brings counts by its
            # content, and hosts with and without the extra `s3` would build all anew for each other.
            fsspec = import_module("fsspec")
            # A listing from before is no answer to what is there now.
            return fsspec.filesystem(address.scheme, use_listings_cache=False)
        except ImportError as error:
            raise UserError(f"{address.url} needs {package}: {error}", hint=f"install {package}") from None
        except ValueError as error:
            raise UserError(
                f"{address.url}: {error}", hint="readable: https:// s3:// hf://datasets/"
            ) from None

    def _refused(self, address: Address, error: OSError) -> UserError | RetryableError:
        if isinstance(error, FileNotFoundError | PermissionError):
            hint = "look at the address, and at the credentials in the environment"
            return UserError(f"{address.url}: {error}", hint=hint)
        return _no_answer(address, error)
