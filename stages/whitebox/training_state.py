"""Checkpoints of a running training: all that the next step depends on, and no kill can hurt them.

    checkpoints/step-00000120/tensors.safetensors    weights, optimizer moments, random states
    checkpoints/step-00000120/state.json             step, data cursor, settings, size and sha256 of the
    tensors

A checkpoint is written beside the others under a hidden name, synced, and renamed: it exists whole or not
at all. The one before it goes only after that, and two are kept in case the disk damages the newer. Tensors
are whole whatever the number of processes that trained: another number may go on from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.whitebox.tensor_file import write_tensors

RANDOM = ("random.cpu", "random.cuda")
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """Tensors by name, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last`, and those of every `every_steps`-th step."""

    last: int = 2
    every_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("last", "every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoints to keep: {name} is {value}, expected at least 1")

    def outdated(self, newest_first: list[Path]) -> list[Path]:
        """Those that may go."""
        return [path for path in newest_first[self.last :] if not self._is_milestone(path)]

    def _is_milestone(self, path: Path) -> bool:
        return self.every_steps is not None and step_of(path) % self.every_steps == 0


def save_state(folder: Path, step: int, state: TrainingState, keep: Keep | None = None) -> Path:
    """Writes the checkpoint of `step`, then deletes those that `keep` lets go. Returns its folder.

    Raises:
        OSError: it could not be written; the others stay as they are, and nothing of it is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    unfinished = folder / f".unfinished-{step:08d}"
    try:
        _write(unfinished, step, state)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)  # a full disk needs the room
        raise
    finished = folder / f"step-{step:08d}"
    shutil.rmtree(
        finished, ignore_errors=True
    )  # only a damaged one can stand here: a whole one would be resumed
    unfinished.rename(finished)
    _sync(folder)
    found = list_checkpoints(folder)
    passed_over = [path for path in found if step_of(path) > step]  # damaged: this run began before them
    kept = [path for path in found if path not in passed_over]
    for old in (*passed_over, *(keep or Keep()).outdated(kept)):
        shutil.rmtree(old)
    return finished


def _write(unfinished: Path, step: int, state: TrainingState) -> None:
    unfinished.mkdir()
    digest = write_tensors(unfinished / _TENSORS, state.tensors)
    written = {"num_bytes": (unfinished / _TENSORS).stat().st_size, "sha256": digest}
    record = {**state.fields, "step": step, "tensors": written}
    (unfinished / _STATE).write_text(json.dumps(record), encoding="utf-8")
    for path in (unfinished / _TENSORS, unfinished / _STATE, unfinished):
        _sync(path)


def load_newest(folder: Path, log: Callable[[str], None]) -> TrainingState | None:
    """The newest whole checkpoint, or None; a damaged one is named in a message and passed over."""
    found = list_checkpoints(folder)
    for path in found:
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log(f"skipping the checkpoint {path.name}: {error}")
    if found:
        log(f"no checkpoint in {folder} is whole: the training begins anew")
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was taken."""
    return int(path.name.removeprefix("step-"))


def _load(path: Path) -> TrainingState:
    fields = json.loads((path / _STATE).read_text(encoding="utf-8"))
    found, expected = _fingerprint(path / _TENSORS), fields["tensors"]
    if found["num_bytes"] != expected["num_bytes"]:
        raise ValueError(
            f"{_TENSORS} has {found['num_bytes']} bytes, expected {expected['num_bytes']}: it is cut short"
            if found["num_bytes"] < expected["num_bytes"]
            else f"{_TENSORS} has {found['num_bytes']} bytes, expected {expected['num_bytes']}"
        )
    if found != expected:
        raise ValueError(f"{_TENSORS} is not what was written: its sha256 differs")
    return TrainingState(load_file(path / _TENSORS), fields)


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators on the CPU and on the current GPU."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Sequence[int]]) -> None:
    """Puts the generators back to where `random_states` found them, given as bytes."""
    torch.set_rng_state(torch.tensor(states["random.cpu"], dtype=torch.uint8))
    if torch.cuda.is_available() and "random.cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(states["random.cuda"], dtype=torch.uint8))


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
