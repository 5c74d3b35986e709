"""Checkpoints of a running training: all that the next step depends on, and no kill can hurt them.

    checkpoints/step-00000120/tensors.safetensors    weights, optimizer moments, random states
    checkpoints/step-00000120/state.json             step, data cursor, settings, size and sha256 of the
    tensors

A checkpoint is written beside the others under a hidden name, synced, and renamed: it exists whole or not
at all. The one before it goes only after that, and two are kept in case the disk damages the newer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NUM_KEPT = 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """Tensors by name, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    fields: dict[str, Any]


def save_state(folder: Path, step: int, state: TrainingState) -> Path:
    """Writes the checkpoint of `step`, then deletes all but the newest two. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    unfinished = folder / f".unfinished-{step:08d}"
    unfinished.mkdir()
    save_file(state.tensors, unfinished / _TENSORS)
    (unfinished / _TENSORS).chmod(0o644)
    record = {**state.fields, "step": step, "tensors": _fingerprint(unfinished / _TENSORS)}
    (unfinished / _STATE).write_text(json.dumps(record), encoding="utf-8")
    for path in (unfinished / _TENSORS, unfinished / _STATE, unfinished):
        _sync(path)
    finished = folder / f"step-{step:08d}"
    shutil.rmtree(
        finished, ignore_errors=True
    )  # only a damaged one can stand here: a whole one would be resumed
    unfinished.rename(finished)
    _sync(folder)
    for old in list_checkpoints(folder)[NUM_KEPT:]:
        shutil.rmtree(old)
    return finished


def load_newest(folder: Path, log: Callable[[str], None]) -> TrainingState | None:
    """The newest whole checkpoint, or None; a damaged one is named in a message and passed over."""
    for path in list_checkpoints(folder):
        try:
            return _load(path)
        except (OSError, ValueError, KeyError) as error:
            log(f"skipping the checkpoint {path.name}: {error}")
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _load(path: Path) -> TrainingState:
    fields = json.loads((path / _STATE).read_text(encoding="utf-8"))
    if _fingerprint(path / _TENSORS) != fields["tensors"]:
        raise ValueError(f"{_TENSORS} is not what was written (its size or sha256 differs)")
    return TrainingState(load_file(path / _TENSORS), fields)


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators on the CPU and on the current GPU."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(tensors: dict[str, Tensor]) -> None:
    """Puts the generators back to where `random_states` found them."""
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"num_bytes": path.stat().st_size, "sha256": digest}


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(".unfinished-*"):
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
