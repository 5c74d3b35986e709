"""The files of a model that a run goes on from, or takes the shape of, for planning: what they are, and what
is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from stages.runtime.errors import UserError
from stages.runtime.external_files import external_digest
from stages.runtime.spec import Outside

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "special_tokens_map.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MODEL_PART = "model"


class Continued(Protocol):
    """The settings that say where weights or a shape are."""

    @property
    def continue_from(self) -> str:
        """A folder, or "" for fresh weights."""

    @property
    def shape_from(self) -> str:
        """A config.json, or a folder with one; "" for a shape by other settings."""


def model_folder(config: Continued) -> Path:
    """The folder with `config.json`: the one that was named, or the `model` part of an artifact.

    Raises:
        UserError: there is no such folder, no model in it, or only weights in pickles.
    """
    named = Path(config.continue_from).expanduser().absolute()
    for folder in (named, named / MODEL_PART):
        if (folder / CONFIG_FILE).is_file():
            if any(folder.glob("*.safetensors")):
                return folder
            raise _no_weights(folder)
    found = "is an empty folder" if named.is_dir() and not any(named.iterdir()) else "has no config.json"
    raise UserError(
        f"[pretrain] continue_from: {named} {found if named.is_dir() else 'is no folder'}",
        hint="name a folder with config.json and model.safetensors, as an artifact of pretrain has in model/",
    )


def shape_file(config: Continued) -> Path:
    """The `config.json` that was named, itself or by its folder.

    Raises:
        UserError: there is none.
    """
    named = Path(config.shape_from).expanduser().absolute()
    for path in (named, named / CONFIG_FILE, named / MODEL_PART / CONFIG_FILE):
        if path.is_file():
            return path
    raise UserError(
        f"[pretrain] shape_from: {named} {'has no config.json' if named.is_dir() else 'is no file'}",
        hint="name a config.json of Hugging Face, or a folder that holds one",
    )


def _no_weights(folder: Path) -> UserError:
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return UserError(
            f"[pretrain] continue_from: {folder} has its weights in {pickled[0]}, which is a pickle: to open "
            "one runs the code in it",
            hint="save them as safetensors first: transformers' save_pretrained does",
        )
    return UserError(
        f"[pretrain] continue_from: {folder} has no model.safetensors",
        hint="a model folder holds config.json and model.safetensors",
    )


def external_files(config: Continued) -> dict[str, Path]:
    """Name -> file outside the store that decides the first weights or the shape; empty for neither."""
    if config.shape_from:
        return {f"shape_from {CONFIG_FILE}": shape_file(config)}
    if not config.continue_from:
        return {}
    folder = model_folder(config)
    names = [CONFIG_FILE, *TOKENIZER_FILES, *sorted(path.name for path in folder.glob("*.safetensors"))]
    return {f"continue_from {name}": folder / name for name in names if (folder / name).is_file()}


def external_digests(config: Continued) -> dict[str, str]:
    """Name -> sha256 of each of them."""
    return {name: external_digest(path) for name, path in external_files(config).items()}


def outside(config: Continued) -> Outside:
    """Where they are, for who has to bring them to where the stage runs."""
    return Outside(same_place=tuple(external_files(config).values()))
