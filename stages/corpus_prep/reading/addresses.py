"""Addresses of remote data: `https://`, `s3://` and whatever fsspec knows, `hf://datasets/owner/name/...`.

An address is pinned by what cannot change: `#sha256=...` for one file, `@COMMIT` for a data set on the hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.runtime.errors import UserError, did_you_mean

_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """url: without the pin. repository, revision, path: of a data set on the hub, else empty."""

    url: str
    sha256: str = ""
    repository: str = ""
    revision: str = ""
    path: str = ""

    @property
    def scheme(self) -> str:
        """`https`, `s3`, `hf`, ..."""
        return self.url.partition("://")[0]

    @property
    def is_hub(self) -> bool:
        """Whether it lies on the hub."""
        return bool(self.repository)

    @property
    def commit(self) -> str:
        """The commit that it is pinned to, or ""."""
        return self.revision if _COMMIT.fullmatch(self.revision) else ""

    @property
    def is_pattern(self) -> bool:
        """Whether it has signs of a glob; a question mark in a web address begins its query."""
        signs = "*[" if self.scheme in ("http", "https") else "*?["
        return any(sign in (self.path if self.is_hub else self.url) for sign in signs)

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}" if self.sha256 else self.url


def parse_address(text: str) -> Address:
    """Raises UserError for a pin or a hub address of another form."""
    url, sign, fragment = text.partition("#")
    sha256 = ""
    if sign:
        name, _, sha256 = fragment.partition("=")
        sha256 = sha256.lower()
        if name != "sha256" or not _SHA256.fullmatch(sha256):
            guess = did_you_mean(name, ["sha256"]) if name != "sha256" else ""
            raise UserError(
                f"{text}: #{fragment} is no pin{guess}",
                hint="write #sha256= and the 64 hex digits of sha256sum",
            )
    if not url.startswith("hf://"):
        return Address(url, sha256)
    match = _HUB.fullmatch(url)
    if match is None:
        raise UserError(
            f"{text} is no address of a data set",
            hint="write hf://datasets/OWNER/NAME@COMMIT/PATH, or a folder",
        )
    return Address(url, sha256, match[1], match[2] or "main", match[3] or "")
