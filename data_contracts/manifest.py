"""The manifest: one JSON file per artifact that says what it is, where it came from and what it cost.

It is written last. A folder without a manifest is not an artifact, however many files it holds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_NAME = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """One file of the artifact."""

    path: str
    """Relative to the artifact, with forward slashes."""
    num_bytes: int
    sha256: str


class PartEntry(_Record):
    """One part: the folder that one contract describes."""

    contract: str
    """Name and version, `documents@1`."""
    digest: str
    """sha256 over the sorted (path, sha256) pairs of the part's files: what downstream fingerprints count."""
    num_rows: int | None = None


class InputEntry(_Record):
    """One input: which part of which artifact was read, and its digest."""

    stage: str
    fingerprint: str
    part: str
    contract: str
    digest: str


class Hardware(_Record):
    """The machine that the stage ran on."""

    cpu: str
    num_cpus: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    platform: str


class Provenance(_Record):
    """What ran, on what, and how long it took."""

    started_at: str
    """UTC, ISO 8601."""
    seconds: float
    peak_memory_bytes: int
    git_commit: str | None
    packages: dict[str, str]
    python: str
    hardware: Hardware
    image_digest: str | None = None
    cost: float | None = None
    """Seconds times the configured price per hour, in the currency of that price; None without a price."""
    resumed: bool = False
    """True when this run went on from a checkpoint of an earlier, interrupted one."""


class KeyParts(_Record):
    """Everything that the fingerprint is computed from."""

    stage: str
    version: int
    config: dict[str, Any]
    code: dict[str, str]
    """File -> digest of its syntax tree without comments and docstrings."""
    inputs: dict[str, str]
    """Role -> content digest; files from outside the store appear as `source: NAME`."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Package that the code imports -> version. Manifests of version 1 have none."""


class Manifest(_Record):
    """The record of one artifact."""

    manifest_version: Literal[1, 2] = 2
    stage: str
    fingerprint: str
    key: KeyParts
    config: dict[str, Any]
    """The full configuration, with the fields that the fingerprint leaves out (paths of own data)."""
    inputs: dict[str, InputEntry]
    parts: dict[str, PartEntry]
    files: tuple[FileEntry, ...]
    metrics: dict[str, float] = Field(default_factory=dict)
    provenance: Provenance
    trusted_code: dict[str, list[str]] = Field(default_factory=dict)
    """File or `package NAME` -> [what the artifact was made with, what was trusted], after `--trust-code`."""
