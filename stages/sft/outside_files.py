"""What fine-tuning reads from outside the store: the model that teaches, and the adapter to begin with."""

from __future__ import annotations

from typing import Protocol

from stages.runtime.spec import Outside
from stages.sft import adapter_files, teacher_files


class FromOutside(adapter_files.Continued, teacher_files.Taught, Protocol):
    """The settings that name them."""


def external_digests(config: FromOutside) -> dict[str, str]:
    """Name -> sha256 of every file of both."""
    return {**teacher_files.external_digests(config), **adapter_files.external_digests(config)}


def outside(config: FromOutside) -> Outside:
    """Where they are, for who has to bring them to where the stage runs."""
    places = (*teacher_files.outside(config).same_place, *adapter_files.outside(config).same_place)
    return Outside(same_place=places)
