"""The training loop that pretraining, fine-tuning and preference tuning share.

One step: add up the summed losses of several micro batches, divide the gradient by all their targets, or by
the weights of these, at once (so that accumulation gives the gradient of one large batch, whatever each micro
batch counts), clip, update. A run that is killed goes on from its last checkpoint and ends with the same bits
as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.whitebox.checkpoint_writer import CheckpointWriter
from stages.whitebox.one_process import OneProcess
from stages.whitebox.snapshot import check_shapes, frozen_digest, kinds, put_back, take
from stages.whitebox.spike_guard import Place, SpikeGuard, place_of_last, whereabouts
from stages.whitebox.trainer_settings import TrainerSettings
from stages.whitebox.training_state import RANDOM, TrainingState, load_newest, restore_random_states
from stages.whitebox.training_terms import (
    Batches,
    LossFn,
    StepLoss,
    TrainingDiverged,
    TrainingStopped,
    TrainingSummary,
)
from stages.whitebox.weight_average import averaged_weights, use_averages

__all__ = [
    "Batches",
    "LossFn",
    "StepLoss",
    "TrainerSettings",
    "TrainingDiverged",
    "TrainingStopped",
    "TrainingSummary",
    "largest_part",
    "train",
]

HISTORY_POINTS = 1000
OF_EVERY_STEP = frozenset({"train_loss", "learning_rate", "grad_norm", "tokens_per_second"})


def largest_part(whole: int, limit: int) -> int:
    """The largest divisor of `whole` that is not above `limit`, as for micro batches of an update."""
    return next(part for part in range(min(whole, limit), 0, -1) if whole % part == 0)


def train(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    settings: TrainerSettings,
    *,
    checkpoint_dir: Path,
    on_step: Callable[[int, dict[str, float]], None],
    evaluate: Callable[[], dict[str, float]] | None = None,
    should_stop: Callable[[], bool] | None = None,
    is_enough: Callable[[TrainingSummary], bool] | None = None,
    log: Callable[[str], None] = print,
    processes: OneProcess | None = None,
) -> TrainingSummary:
    """Trains to `settings.total_steps`, from the newest checkpoint in `checkpoint_dir` if there is one.

    Args:
        loss_fn: called with the model and a batch on the model's device, under autocast to `compute_dtype`.
        on_step: called after each step with its number (from 1) and its values: train_loss, learning_rate,
            grad_norm, tokens_per_second, the loss's metrics, skipped_steps if it was skipped, and what
            `evaluate` returned if it ran.
        evaluate: called every `evaluate_every_steps` and after the last step, without gradients.
        should_stop: asked after each step.
        is_enough: asked after each evaluation, and when a run goes on; True ends it as if it were through.
        processes: who shares the work, `distributed.py`; it has prepared the model. Each process calls
            `train` with its own part of the rows.

    Raises:
        TrainingDiverged: too many steps had to be skipped, see `SpikeGuard`.
        TrainingStopped: `should_stop` said so; the checkpoint of the last step is saved.
        ValueError: the checkpoint was written with other settings or is of another model.
        OSError: the last checkpoint could not be written.
    """
    processes = processes or OneProcess()
    run = _Run(model, batches, loss_fn, settings, Path(checkpoint_dir), log, processes)
    run.resume()
    is_done = is_enough is not None and is_enough(run.summary)
    try:
        while run.summary.steps < settings.total_steps and not is_done:
            values, found = run.step(), {}
            step = run.summary.steps
            is_last = step == settings.total_steps
            if evaluate is not None and (step % settings.evaluate_every_steps == 0 or is_last):
                with averaged_weights(run.optimizers):
                    found = _evaluate(model, evaluate, processes)
            run.record(values | found)
            is_done = bool(found) and is_enough is not None and is_enough(run.summary)
            on_step(step, values | found)
            stop = should_stop is not None and should_stop() and not (is_last or is_done)
            stop, is_due = processes.any(stop, is_done or run.is_checkpoint_due())
            if stop or is_due:
                run.save()
            if stop:
                raise run.stopped()
        run.writer.finish()
    finally:
        run.writer.wait()
    use_averages(run.optimizers)
    return run.summary


@dataclass
class _Accumulated:
    """What the micro batches of one step add up to."""

    loss_sum: float
    num_targets: int
    weight: float
    """What the sums are divided by: the number of targets, or the sum of their weights."""
    metric_sums: dict[str, float]
    micro_losses: list[Tensor]
    """Of this process, one for each micro batch."""
    places: list[Place]
    """Of this process, where each of them came from."""


class _Run:
    """The state of one training: model, optimizer, data cursor, counts."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_fn: LossFn,
        settings: TrainerSettings,
        checkpoint_dir: Path,
        log: Callable[[str], None],
        processes: OneProcess,
    ) -> None:
        self.model, self.batches, self.loss_fn, self.settings = model, batches, loss_fn, settings
        self.checkpoint_dir, self.log, self.processes = checkpoint_dir, log, processes
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.frozen = frozen_digest(model, processes)
        self.device = next(iter(self.named.values())).device
        self.optimizers = settings.build_optimizers(model)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.summary = TrainingSummary()
        self.guard = SpikeGuard(
            settings.spike_factor, settings.max_skipped_in_a_row, settings.max_skipped_steps
        )
        self.writer = CheckpointWriter(checkpoint_dir, settings.checkpoint_keep, log)
        self._saved_at = time.monotonic()
        torch.manual_seed(settings.seed)

    def step(self) -> dict[str, float]:
        """One update; returns what to report."""
        self.writer.tell()
        started = time.perf_counter()
        step = self.summary.steps + 1
        share = self.settings.learning_rate_share(step)
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.model.train()
        found = self._accumulate()
        values = self._update(found, step)
        self.model.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self.summary.steps = step
        self.summary.num_targets += found.num_targets
        self.summary.seconds += seconds
        speed = {"tokens_per_second": found.num_targets / seconds}
        return {**values, "learning_rate": self.settings.learning_rate * share, **speed}

    def _accumulate(self) -> _Accumulated:
        """Adds up gradients of summed losses in this process, and everything else over all processes."""
        loss_sum, num_targets, weight = torch.zeros((), device=self.device), 0, 0.0
        metric_sums: dict[str, float] = {}
        micro_losses, places = [], []
        for _ in range(self.settings.accumulation_steps):
            before = self.batches.state_dict()
            batch = {
                name: tensor.to(self.device, non_blocking=True)
                for name, tensor in self.batches.next_batch().items()
            }
            places.append(place_of_last(self.batches, before))
            with compute_in(self.settings.compute_dtype, self.device):
                part = self.loss_fn(self.model, batch)
            micro_losses.append(part.loss_sum.detach())
            if part.num_targets == 0 and self.processes.size == 1:
                continue
            part.loss_sum.backward()  # also without targets: the other processes wait for this one's part
            loss_sum += part.loss_sum.detach()
            num_targets += part.num_targets
            weight += part.num_targets if part.weight is None else part.weight
            for name, value in part.metrics.items():
                weighted = value * part.num_targets if part.num_targets else 0.0
                metric_sums[name] = metric_sums.get(name, 0.0) + weighted
        names = sorted(metric_sums)
        metrics = (metric_sums[name] for name in names)
        sums = self.processes.total([float(loss_sum), num_targets, weight, *metrics])
        total_metrics = dict(zip(names, sums[3:], strict=True))
        return _Accumulated(sums[0], int(sums[1]), sums[2], total_metrics, micro_losses, places)

    def _update(self, found: _Accumulated, step: int) -> dict[str, float]:
        """Mean and clip in one multiplication, then the optimizers; or no update, and why."""
        if found.num_targets == 0:
            self.log(f"step {step} has no targets, so it changes nothing")
            return {}
        loss = found.loss_sum / found.weight
        if problem := self.guard.why_not_loss(loss):
            return self._skip(problem, found, step)
        self.processes.add_gradients(list(self.named.values()))
        grads = [p.grad for p in self.named.values() if p.grad is not None]
        norm = self.processes.gradient_norm(grads) / found.weight
        if problem := self.guard.why_not_gradient(norm):
            return self._skip(problem, found, step)
        self.guard.accept(norm)
        clip = self.settings.grad_clip
        factor = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        torch._foreach_mul_(self.processes.local(grads), factor / found.weight)
        for optimizer in self.optimizers:
            optimizer.step()
        metrics = {name: total / found.num_targets for name, total in found.metric_sums.items()}
        return {**metrics, "train_loss": loss, "grad_norm": norm}

    def _skip(self, problem: str, found: _Accumulated, step: int) -> dict[str, float]:
        """No update.

        Raises:
            TrainingDiverged: it was one too many.
        """
        self.guard.skip()
        mine = whereabouts(self.batches, found.micro_losses, found.places)
        where = "; ".join(dict.fromkeys(self.processes.texts(mine)))
        total, peak, clip = self.settings.total_steps, self.settings.learning_rate, self.settings.grad_clip
        if reason := self.guard.why_stop():
            raise TrainingDiverged(
                f"{problem} at step {step} of {total} ({where}), and {reason}; {self._damage()}try "
                f"learning_rate {peak / 3:.1e} instead of {peak:.1e}, a longer warm-up, or a smaller "
                f"grad_clip than {clip}; if it is always the same documents, look at these"
            )
        self.log(f"step {step} of {total} is skipped: {problem} ({where})")
        return {"skipped_steps": float(self.guard.num_skipped)}

    def _damage(self) -> str:
        """Bad steps leave the weights alone: values that are no numbers were there before, and stay."""
        parts = self.processes.local([p.detach() for p in self.named.values()])
        for name, part in zip(self.named, parts, strict=True):
            if not bool(torch.isfinite(part).all()):
                return (
                    f"{name} has values that are no numbers: an update was far too large, or what the "
                    "training began with is damaged; "
                )
        return ""

    def record(self, values: dict[str, float]) -> None:
        """Keeps the latest values, and a thinned history."""
        self.summary.last.update(values)
        every = max(1, self.settings.total_steps // HISTORY_POINTS)
        step = self.summary.steps
        for name, value in values.items():
            if step % every == 0 or name not in OF_EVERY_STEP:
                self.summary.history.setdefault(name, []).append([step, value])

    def is_checkpoint_due(self) -> bool:
        """Whether steps or seconds since the last checkpoint say so; always after the last step.

        The clock is the first process's, and it waits while a checkpoint is being written.
        """
        settings, step = self.settings, self.summary.steps
        every_steps, every_seconds = settings.checkpoint_every_steps, settings.checkpoint_every_seconds
        if step == settings.total_steps or (every_steps is not None and step % every_steps == 0):
            return True
        if every_seconds is None or self.processes.rank > 0 or self.writer.is_busy:
            return False
        return time.monotonic() - self._saved_at >= every_seconds

    def save(self) -> None:
        """Hands a copy of everything that the next step depends on to the writer."""
        tensors = take(self.model, self.optimizers, self.processes)
        self._saved_at = time.monotonic()
        if self.processes.rank > 0:
            return
        fields = {
            "settings": self._deciding(),
            "summary": asdict(self.summary),
            "batches": self.batches.state_dict(),
            "guard": self.guard.state_dict(),
        }
        self.writer.submit(self.summary.steps, TrainingState(tensors, fields))

    def stopped(self) -> TrainingStopped:
        """What to raise when the checkpoint that was begun is saved."""
        self.writer.finish()
        steps = f"step {self.summary.steps} of {self.settings.total_steps}"
        return TrainingStopped(f"stopped after {steps}; the checkpoint is saved")

    def resume(self) -> None:
        """Goes to the newest whole checkpoint, if there is one; the first process reads it for all."""
        state = load_newest(self.checkpoint_dir, self.log) if self.processes.rank == 0 else None
        tensors = state.tensors if state is not None else {}
        if state is not None:
            self._check_settings(state.fields["settings"])
            check_shapes(tensors, self.model, self.optimizers, self.checkpoint_dir)
        known = {"kinds": kinds(tensors), "random": {n: tensors[n].tolist() for n in RANDOM if n in tensors}}
        fields = self.processes.share(None if state is None else {**state.fields, **known})
        if fields is None:
            return
        put_back(tensors, fields["kinds"], self.model, self.optimizers, self.processes)
        restore_random_states(fields["random"])
        self.batches.load_state_dict(fields["batches"])
        self.guard.load_state_dict(fields["guard"])
        self.summary = TrainingSummary(**fields["summary"])
        self.log(f"going on after step {self.summary.steps} of {self.settings.total_steps}")

    def _deciding(self) -> dict[str, Any]:
        frozen = {} if self.frozen is None else {"frozen weights": self.frozen[:12]}
        return {**self.settings.deciding(), **frozen}

    def _check_settings(self, saved: dict[str, Any]) -> None:
        mine = self._deciding()
        changed = [
            f"{name} {saved.get(name)} -> {mine[name]}" for name in mine if saved.get(name) != mine[name]
        ]
        if changed:
            raise ValueError(
                f"the checkpoints in {self.checkpoint_dir} are of other settings ({', '.join(changed)}); "
                "delete that folder to begin anew, or take back the change"
            )


def compute_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Matrix products in `dtype`, all else in float32; nothing changes where that is float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _evaluate(
    model: nn.Module, evaluate: Callable[[], dict[str, float]], processes: OneProcess
) -> dict[str, float]:
    model.eval()
    with torch.no_grad(), processes.reading(model):
        return evaluate()
