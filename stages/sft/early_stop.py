"""Ends a training that no longer gets better on held-out conversations, with the weights that were best.

What was best is read from the history of the run, which its checkpoints carry: a run that was killed decides
the same when it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from stages.whitebox.tensor_file import write_tensors
from stages.whitebox.trainer import TrainingSummary

WATCHED = "validation_loss"


class EarlyStop:
    """Keeps the weights of the best evaluation in `folder`; ends after `patience` others without a better."""

    def __init__(self, model: nn.Module, patience: int, folder: Path, log: Callable[[str], None]) -> None:
        self.model, self.patience, self.folder, self.log = model, patience, folder, log

    def is_enough(self, summary: TrainingSummary) -> bool:
        """Called after each evaluation, and when a run goes on. Whether it should end here."""
        history = summary.history.get(WATCHED, [])
        if not history:
            return False
        step, loss = best_evaluation(summary)
        if step == history[-1][0] == summary.steps:
            self._keep(step)
        waited = sum(at > step for at, _ in history)
        if waited < self.patience:
            return False
        self.log(
            f"stopping after step {summary.steps}: {waited} evaluations without a held-out loss below "
            f"{loss:.4f}, that of step {step}"
        )
        return True

    def restore(self, summary: TrainingSummary) -> bool:
        """Give the model the best weights. Whether they are others than it has."""
        step, _ = best_evaluation(summary)
        if step == summary.steps:
            return False
        self.model.load_state_dict(load_file(self._path(step)))
        self.log(f"the weights are those of step {step}, whose held-out loss is lowest")
        return True

    def _keep(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / ".unfinished"
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()
        }
        write_tensors(unfinished, tensors)
        unfinished.rename(self._path(step))
        # The one before stays: a run that goes on from an older checkpoint may find that one the best again.
        for other in sorted(self.folder.glob("best-*"))[:-2]:
            other.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"best-{step:08d}.safetensors"


def best_evaluation(summary: TrainingSummary) -> tuple[int, float]:
    """(step, held-out loss) of the best one; of equal ones the first."""
    step, loss = min(summary.history[WATCHED], key=lambda point: (point[1], point[0]))
    return int(step), loss
