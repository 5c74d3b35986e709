"""The files of the adapter that fine-tuning begins with, for planning: what they are, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from stages.runtime.errors import UserError
from stages.runtime.external_files import external_digest
from stages.runtime.spec import Outside

FILES = ("adapter_config.json", "adapter_model.safetensors")


class Continued(Protocol):
    """The setting that says where the adapter is."""

    @property
    def adapter_from(self) -> str:
        """A folder, or "" for none."""


def adapter_folder(config: Continued) -> Path | None:
    """The folder that was named, or `adapter` or `model/adapter` in it, as an artifact of sft has it.

    Raises:
        UserError: there is no adapter in any of them.
    """
    if not config.adapter_from:
        return None
    named = Path(config.adapter_from).expanduser().absolute()
    for folder in (named, named / "adapter", named / "model" / "adapter"):
        if all((folder / name).is_file() for name in FILES):
            return folder
    raise UserError(
        f"[sft] adapter_from: {named} {'holds no adapter' if named.is_dir() else 'is no folder'}",
        hint=f"name a folder with {' and '.join(FILES)}, such as an artifact of sft with an adapter: "
        "glassworks rerun sft --set sft.adapter=lora makes one",
    )


def external_digests(config: Continued) -> dict[str, str]:
    """Name -> sha256 of each file outside the store that the adapter begins with."""
    return {path.name: external_digest(path) for path in _files(config)}


def outside(config: Continued) -> Outside:
    """Where they are, for who has to bring them to where the stage runs."""
    return Outside(same_place=tuple(_files(config)))


def _files(config: Continued) -> list[Path]:
    folder = adapter_folder(config)
    return [] if folder is None else [folder / name for name in FILES]
