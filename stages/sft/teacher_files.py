"""The files of the model that teaches, for planning: what they are, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from stages.runtime.errors import UserError
from stages.runtime.external_files import external_digest
from stages.runtime.spec import Outside

PATTERNS = ("config.json", "generation_config.json", "tokenizer.*", "chat_template.jinja", "*.safetensors")


class Taught(Protocol):
    """The setting that says where the teacher is."""

    @property
    def teacher(self) -> str:
        """A folder, or "" for none."""


def teacher_folder(config: Taught) -> Path:
    """The folder that was named, or the `model` part of the artifact that was named.

    Raises:
        UserError: there is no model in either.
    """
    named = Path(config.teacher).expanduser().absolute()
    for folder in (named, named / "model"):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    raise UserError(
        f"[sft] teacher: {named} {'holds no model' if named.is_dir() else 'is no folder'}",
        hint="name a folder with config.json, model.safetensors and tokenizer, such as an artifact of sft",
    )


def external_digests(config: Taught) -> dict[str, str]:
    """Name -> sha256 of each file outside the store that decides what is taught."""
    return {f"teacher {path.name}": external_digest(path) for path in _files(config)}


def outside(config: Taught) -> Outside:
    """Where they are, for who has to bring them to where the stage runs."""
    return Outside(same_place=tuple(_files(config)))


def _files(config: Taught) -> list[Path]:
    if not config.teacher:
        return []
    folder = teacher_folder(config)
    return sorted({path for pattern in PATTERNS for path in folder.glob(pattern)})
