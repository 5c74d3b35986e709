"""Manifests of artifacts that hold nothing: one place that knows every field of them."""

from __future__ import annotations

from typing import Any

from data_contracts.manifest import Hardware, KeyParts, Manifest, Provenance

FINGERPRINT = "f" * 24


def empty_key(stage: str, **fields: Any) -> KeyParts:
    """The key of a stage without settings, code and inputs, but for these fields."""
    nothing: dict[str, Any] = {"version": 1, "config": {}, "code": {}, "inputs": {}}
    return KeyParts(stage=stage, **(nothing | fields))


def provenance(**fields: Any) -> Provenance:
    """Of a second on New Year's Day, but for these fields."""
    plain: dict[str, Any] = {
        "started_at": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "peak_memory_bytes": 1,
        "git_commit": None,
        "packages": {},
        "python": "3",
        "hardware": Hardware(cpu="test", num_cpus=1, memory_bytes=1, platform="test"),
    }
    return Provenance(**(plain | fields))


def empty_manifest(stage: str, **fields: Any) -> Manifest:
    """The manifest of an artifact without parts and files, but for these fields."""
    nothing: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "key": empty_key(stage),
        "config": {},
        "inputs": {},
        "parts": {},
        "files": (),
        "provenance": provenance(),
    }
    return Manifest(stage=stage, **(nothing | fields))
