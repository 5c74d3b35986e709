"""The training loop that pretraining, fine-tuning and preference tuning share.

One step: add up the summed losses of several micro batches, divide the gradient by all their targets at
once (so that accumulation gives the gradient of one large batch, whatever each micro batch counts), clip,
update. A run that is killed goes on from its last checkpoint and ends with the same bits as one that was
not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.whitebox.optim import build_adamw, build_muon, warmup_decay
from stages.whitebox.training_state import (
    TrainingState,
    load_newest,
    random_states,
    restore_random_states,
    save_state,
)
from stages.whitebox.weight_average import (
    AVERAGE,
    NUM_AVERAGED,
    averaged_weights,
    keep_average,
    use_averages,
)

HISTORY_POINTS = 1000
OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq", "momentum", AVERAGE, NUM_AVERAGED)
OF_EVERY_STEP = frozenset({"train_loss", "learning_rate", "grad_norm", "tokens_per_second"})


@dataclass(frozen=True)
class TrainerSettings:
    """Everything that decides the result beside the model, the batches and the loss; a step is one update."""

    total_steps: int
    learning_rate: float
    """Peak of AdamW, which updates everything, or everything but the matrices of the layers."""
    matrix_learning_rate: float | None = None
    """Peak of Muon for the matrices of the layers; None leaves these to AdamW."""
    warmup_steps: int = 0
    decay_fraction: float = 0.5
    min_learning_rate_fraction: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    ema_decay: float | None = None
    """Of an average of the weights, which is evaluated and is the result; None keeps none."""
    accumulation_steps: int = 1
    seed: int = 0
    compute_dtype: torch.dtype = torch.float32
    evaluate_every_steps: int = 100
    checkpoint_every_steps: int | None = None
    checkpoint_every_seconds: float | None = None
    """Either, both or none of the two; the last step and a stop are always saved."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "accumulation_steps", "checkpoint_every_steps", "evaluate_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0")

    def learning_rate_share(self, step: int) -> float:
        """What share of the peak a step takes; the first step is 1."""
        return warmup_decay(
            step, self.total_steps, self.warmup_steps, self.decay_fraction, self.min_learning_rate_fraction
        )

    def build_optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW alone, or Muon and AdamW."""
        optimizers = self._optimizers_of(model)
        if self.ema_decay is not None:
            for optimizer in optimizers:
                keep_average(optimizer, self.ema_decay)
        return optimizers

    def _optimizers_of(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        if self.matrix_learning_rate is None:
            return [build_adamw(model, self.learning_rate, self.betas, self.weight_decay)]
        return build_muon(
            model,
            self.learning_rate,
            self.matrix_learning_rate,
            self.betas,
            self.weight_decay,
            self.compute_dtype,
        )


def largest_part(whole: int, limit: int) -> int:
    """The largest divisor of `whole` that is not above `limit`, as for micro batches of an update."""
    return next(part for part in range(min(whole, limit), 0, -1) if whole % part == 0)


@dataclass(frozen=True)
class StepLoss:
    """The loss of a micro batch, summed over `num_targets` (with gradient); `metrics` are means."""

    loss_sum: Tensor
    num_targets: int
    metrics: dict[str, float] = field(default_factory=dict)


class Batches(Protocol):
    """An endless source of micro batches whose place can be saved; its state must be JSON values."""

    def next_batch(self) -> dict[str, Tensor]:
        """Tensors by name, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved place."""
        ...


@dataclass
class TrainingSummary:
    """What a finished run did; the sums go on across kills and resumes."""

    steps: int = 0
    num_targets: int = 0
    seconds: float = 0.0
    """In training steps alone, without evaluation and checkpoints."""
    last: dict[str, float] = field(default_factory=dict)
    """The latest value of everything that was reported."""
    history: dict[str, list[list[float]]] = field(default_factory=dict)
    """[step, value] of everything that was reported, at most about 1,000 points each."""

    @property
    def tokens_per_second(self) -> float:
        """Targets per second of training."""
        return self.num_targets / self.seconds if self.seconds else 0.0


class TrainingStopped(Exception):
    """The run was asked to stop; its checkpoint is saved."""


class TrainingDiverged(ValueError):
    """The loss or the gradient is no longer a number."""


LossFn = Callable[[Any, dict[str, Tensor]], StepLoss]


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
    log: Callable[[str], None] = print,
) -> TrainingSummary:
    """Trains to `settings.total_steps`, from the newest checkpoint in `checkpoint_dir` if there is one.

    Args:
        loss_fn: called with the model and a batch on the model's device, under autocast to `compute_dtype`.
        on_step: called after each step with its number (from 1) and its values: train_loss, learning_rate,
            grad_norm, tokens_per_second, the loss's metrics, and what `evaluate` returned if it ran.
        evaluate: called every `evaluate_every_steps` and after the last step, without gradients.
        should_stop: asked after each step.

    Raises:
        TrainingDiverged: the loss or the gradient of a step is not finite.
        TrainingStopped: `should_stop` said so; the checkpoint of the last step is saved.
        ValueError: the checkpoint was written with other settings.
    """
    run = _Run(model, batches, loss_fn, settings, Path(checkpoint_dir), log)
    run.resume()
    while run.summary.steps < settings.total_steps:
        values = run.step()
        step = run.summary.steps
        if evaluate is not None and (
            step % settings.evaluate_every_steps == 0 or step == settings.total_steps
        ):
            with averaged_weights(run.optimizers):
                values.update(_evaluate(model, evaluate))
        run.record(values)
        on_step(step, values)
        stopping = should_stop is not None and should_stop() and step < settings.total_steps
        if stopping or run.is_checkpoint_due():
            run.save()
        if stopping:
            raise TrainingStopped(
                f"stopped after step {step} of {settings.total_steps}; the checkpoint is saved"
            )
    use_averages(run.optimizers)
    return run.summary


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
    ) -> None:
        self.model, self.batches, self.loss_fn, self.settings = model, batches, loss_fn, settings
        self.checkpoint_dir, self.log = checkpoint_dir, log
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.named.values())).device
        self.optimizers = settings.build_optimizers(model)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.summary = TrainingSummary()
        self._saved_at = time.monotonic()
        torch.manual_seed(settings.seed)

    def step(self) -> dict[str, float]:
        """One update; returns what to report."""
        started = time.perf_counter()
        step = self.summary.steps + 1
        share = self.settings.learning_rate_share(step)
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.model.train()
        loss_sum, num_targets, values = self._accumulate()
        if num_targets > 0:
            values["train_loss"] = self._finite("loss", loss_sum / num_targets, step)
            values["grad_norm"] = self._update(num_targets, step)
        else:
            self.log(f"step {step} has no targets, so it changes nothing")
        self.model.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self.summary.steps = step
        self.summary.num_targets += num_targets
        self.summary.seconds += seconds
        speed = {"tokens_per_second": num_targets / seconds}
        return {**values, "learning_rate": self.settings.learning_rate * share, **speed}

    def _accumulate(self) -> tuple[float, int, dict[str, float]]:
        """Adds up gradients of summed losses; returns the loss sum, the targets, and mean metrics."""
        loss_sum, num_targets = torch.zeros((), device=self.device), 0
        metric_sums: dict[str, float] = {}
        for _ in range(self.settings.accumulation_steps):
            batch = {
                name: tensor.to(self.device, non_blocking=True)
                for name, tensor in self.batches.next_batch().items()
            }
            with compute_in(self.settings.compute_dtype, self.device):
                part = self.loss_fn(self.model, batch)
            if part.num_targets == 0:
                continue
            part.loss_sum.backward()
            loss_sum += part.loss_sum.detach()
            num_targets += part.num_targets
            for name, value in part.metrics.items():
                metric_sums[name] = metric_sums.get(name, 0.0) + value * part.num_targets
        return (
            float(loss_sum),
            num_targets,
            {name: total / num_targets for name, total in metric_sums.items()},
        )

    def _update(self, num_targets: int, step: int) -> float:
        """Mean and clip in one multiplication, then the optimizers; returns the norm before clipping."""
        grads = [p.grad for p in self.named.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) / num_targets
        self._finite("gradient norm", norm, step)
        clip = self.settings.grad_clip
        factor = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
        torch._foreach_mul_(grads, factor / num_targets)
        for optimizer in self.optimizers:
            optimizer.step()
        return norm

    def _finite(self, what: str, value: float, step: int) -> float:
        if not math.isfinite(value):
            peak, clip = self.settings.learning_rate, self.settings.grad_clip
            raise TrainingDiverged(
                f"the {what} is {value} at step {step} of {self.settings.total_steps}; try learning_rate "
                f"{peak / 3:.1e} instead of {peak:.1e}, a longer warm-up, or a smaller grad_clip than {clip}"
            )
        return value

    def record(self, values: dict[str, float]) -> None:
        """Keeps the latest values, and a thinned history."""
        self.summary.last.update(values)
        every = max(1, self.settings.total_steps // HISTORY_POINTS)
        step = self.summary.steps
        for name, value in values.items():
            if step % every == 0 or name not in OF_EVERY_STEP:
                self.summary.history.setdefault(name, []).append([step, value])

    def is_checkpoint_due(self) -> bool:
        """Whether steps or seconds since the last checkpoint say so; always after the last step."""
        settings, step = self.settings, self.summary.steps
        every_steps, every_seconds = settings.checkpoint_every_steps, settings.checkpoint_every_seconds
        return (
            step == settings.total_steps
            or (every_steps is not None and step % every_steps == 0)
            or (every_seconds is not None and time.monotonic() - self._saved_at >= every_seconds)
        )

    def save(self) -> None:
        """Writes a checkpoint of everything that the next step depends on."""
        tensors = {f"model.{name}": t.detach().contiguous() for name, t in self.model.state_dict().items()}
        for name, parameter, optimizer in self._owners():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        fields = {
            "settings": _settings_as_json(self.settings),
            "summary": asdict(self.summary),
            "batches": self.batches.state_dict(),
        }
        save_state(
            self.checkpoint_dir, self.summary.steps, TrainingState({**tensors, **random_states()}, fields)
        )
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Goes to the newest whole checkpoint, if there is one."""
        state = load_newest(self.checkpoint_dir, self.log)
        if state is None:
            return
        self._check_settings(state.fields["settings"])
        weights = _with_prefix(state.tensors, "model.")
        self.model.load_state_dict(weights)
        self._restore_optimizers(state.tensors)
        self.batches.load_state_dict(state.fields["batches"])
        restore_random_states(state.tensors)
        self.summary = TrainingSummary(**state.fields["summary"])
        self.log(f"going on after step {self.summary.steps} of {self.settings.total_steps}")

    def _restore_optimizers(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter, optimizer in self._owners():
            for key in OPTIMIZER_STATE:
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:
                    optimizer.state[parameter][key] = value.to(self.device)

    def _owners(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        """Every trained parameter by name, with the optimizer that updates it."""
        names = {parameter: name for name, parameter in self.named.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield names[parameter], parameter, optimizer

    def _check_settings(self, saved: dict[str, Any]) -> None:
        mine = _settings_as_json(self.settings)
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


def _evaluate(model: nn.Module, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return evaluate()


def _settings_as_json(settings: TrainerSettings) -> dict[str, Any]:
    """The settings that decide the weights; when to look and when to save may change between two starts."""
    fields = {**asdict(settings), "betas": list(settings.betas), "compute_dtype": str(settings.compute_dtype)}
    return {
        name: value for name, value in fields.items() if not name.startswith(("evaluate_", "checkpoint_"))
    }


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
