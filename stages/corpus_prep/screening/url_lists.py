"""Addresses that the user does not want, named in a file.

One entry a line; what follows a # is a comment:

    bad.example          this host and no other
    .bad.example         this host and all below it
    /casino              `casino` as a word of the path, in any address
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stages.runtime.errors import UserError

_PATH_WORD = re.compile(r"[^\W_]+")
_HOST = re.compile(r"\.?[^\s/.:@]+(?:\.[^\s/.:@]+)*")


@dataclass(frozen=True)
class UrlList:
    """Hosts, suffixes of hosts and words of paths; all looked up in sets, however many there are."""

    hosts: frozenset[str]
    suffixes: frozenset[str]
    path_words: frozenset[str]

    def entry_for(self, url: str) -> str:
        """The entry that an address falls under, as it stands in the list, or "". No address is an error."""
        host, path = _parts(url)
        if host in self.hosts:
            return host
        labels = host.split(".")
        for first in range(len(labels)):
            if (suffix := ".".join(labels[first:])) in self.suffixes:
                return f".{suffix}"
        words = (word.casefold() for word in _PATH_WORD.findall(path))
        return next((f"/{word}" for word in words if word in self.path_words), "")

    def entries_for(self, urls: Iterable[str | None]) -> list[str]:
        """`entry_for` each; "" for documents without an address."""
        return [self.entry_for(url) if url else "" for url in urls]


def _parts(url: str) -> tuple[str, str]:
    """(host in lower case as IDNA writes it, path and query unquoted); an address may lack its `https://`."""
    try:
        split = urlsplit(url if "://" in url else f"//{url}")
        host = (split.hostname or "").rstrip(".")
    except ValueError:  # a broken IPv6 address: there is no host to look up
        return "", url
    return _ascii_host(host), unquote(f"{split.path} {split.query}")


def _ascii_host(host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def read_url_list(paths: Sequence[Path]) -> UrlList:
    """All entries of some files. Raises UserError for a file that is missing and a line that is no entry."""
    hosts, suffixes, path_words = set(), set(), set()
    for path in paths:
        for number, line in list_lines(path, "corpus_prep.url_lists"):
            entry = line.casefold()
            if entry.startswith("/") and _PATH_WORD.fullmatch(entry[1:]):
                path_words.add(entry[1:])
            elif not _HOST.fullmatch(entry):
                raise UserError(
                    f"{path}, line {number}: {line!r} is neither a host nor a word of a path",
                    hint="write bad.example, .bad.example (and all below it) or /word",
                )
            elif entry.startswith("."):
                suffixes.add(_ascii_host(entry[1:]))
            else:
                hosts.add(_ascii_host(entry))
    return UrlList(frozenset(hosts), frozenset(suffixes), frozenset(path_words))


def list_lines(path: Path, setting: str) -> list[tuple[int, str]]:
    """(line number, entry) of a list without comments and empty lines. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", hint=f"name a UTF-8 text file in {setting}") from None
    entries = ((number, line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1))
    return [(number, entry) for number, entry in entries if entry]
