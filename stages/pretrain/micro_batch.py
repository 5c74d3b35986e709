"""How many rows are computed at once: what the memory holds, while the rows of an update stay."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from stages.pretrain.recipe import MICRO_BATCH_TOKENS, Recipe
from stages.pretrain.spec import PretrainConfig
from stages.runtime.errors import RetryableError
from stages.runtime.session import StageSession
from stages.whitebox.batches import positions_within
from stages.whitebox.device import Device, is_out_of_memory, memory_bytes
from stages.whitebox.experts import MixtureOfExperts
from stages.whitebox.memory_probe import count_rows_that_fit, largest_that_runs
from stages.whitebox.model import CausalLM
from stages.whitebox.trainer import StepLoss, compute_in, largest_part

REMEMBERED = "micro_batch.json"
MEMORY_SHARE = 0.5
"""Of a CPU's memory. A step resides in up to 1.65 times what its tensors count (measured: the allocator keeps
gaps, the products buffers), and libraries and tokens want room too."""
WEIGHT_BYTES, MOMENT_BYTES = 4, 8
"""Per parameter; the optimizer's moments are not there yet when memory is probed."""

LossFn = Callable[[CausalLM, dict[str, torch.Tensor]], StepLoss]


def fit_micro_batch(
    config: PretrainConfig,
    recipe: Recipe,
    model: CausalLM,
    loss_fn: LossFn,
    device: Device,
    session: StageSession,
    num_processes: int = 1,
) -> Recipe:
    """The recipe with the micro batch that memory has room for; a size set by hand stays.

    The gradient of an update is a float32 sum over its micro batches, so another size changes the last bits
    and nothing else, but for the balancing loss of experts (`with_router_loss`). For a resume to be exact in
    these too the size is remembered in the working folder.
    """
    if config.micro_batch_size != "auto":
        return recipe
    remembered = session.work_dir / REMEMBERED
    where = _name_of(device.device)
    size = _remembered_size(remembered, recipe, where)
    if size is None:
        size = _probe(recipe, _Step(config, recipe, model, loss_fn, device, num_processes), session)
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps({"micro_batch_size": size, "device": where}), encoding="utf-8")
    return replace(recipe, micro_batch_size=size)


@contextmanager
def smaller_after_a_lack_of_memory(
    config: PretrainConfig, recipe: Recipe, session: StageSession
) -> Iterator[None]:
    """Where memory runs out all the same, the remembered size is halved, so that building again goes on.

    A probe cannot see all: what others take of the memory later, and what a fragmented heap has no room for.

    Raises:
        RetryableError: memory ran out, and the next start takes fewer rows at a time; in every process, as
            any may be the one that is heard.
        RuntimeError: as it came, where that cannot be: one row at a time, a size set by hand, or a process of
            another machine than that which remembers.
    """
    try:
        yield
    except RuntimeError as error:
        size = recipe.micro_batch_size
        if not is_out_of_memory(error) or config.micro_batch_size != "auto" or size == 1:
            raise
        smaller = largest_part(recipe.rows_per_step, size // 2)
        if not _remember_instead(session.work_dir / REMEMBERED, smaller):
            raise
        raise RetryableError(
            f"memory ran out with {size} rows at a time: {str(error).splitlines()[0]}",
            hint=f"build again: it goes on from its checkpoint with {smaller} rows at a time",
        ) from error


def _remember_instead(path: Path, size: int) -> bool:
    """Whether it could be done. In one step, as other processes may do the same at this moment."""
    try:
        remembered = json.loads(path.read_text(encoding="utf-8"))
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({**remembered, "micro_batch_size": size}), encoding="utf-8")
        partial.replace(path)
    except (OSError, ValueError):  # it must not hide the lack of memory
        return False
    return True


class _Step:
    """Forward and backward pass over rows that look like the run's."""

    def __init__(
        self,
        config: PretrainConfig,
        recipe: Recipe,
        model: CausalLM,
        loss_fn: LossFn,
        device: Device,
        num_processes: int,
    ) -> None:
        self.config, self.recipe, self.model = config, recipe, model
        self.loss_fn, self.device = loss_fn, device
        is_divided = config.data_parallel == "fsdp" and num_processes > 1
        self.is_divided, self.num_copies = is_divided, 1 if is_divided else num_processes
        self.num_params = sum(parameter.numel() for parameter in model.parameters())

    def __call__(self, num_rows: int) -> None:
        zeros_BxT = torch.zeros(
            num_rows, self.recipe.context_tokens, dtype=torch.long, device=self.device.device
        )
        batch = {"ids": zeros_BxT, "targets": zeros_BxT}
        if self.config.separate_documents:
            batch |= {"document_ids": zeros_BxT, "positions": positions_within(zeros_BxT)}
        self.model.train()
        is_on_gpu = self.device.device.type == "cuda"
        # From the second micro batch on there are gradients while the next ones are computed.
        num_passes = 2 if is_on_gpu and num_rows < self.recipe.rows_per_step else 1
        try:
            for _ in range(num_passes):
                with compute_in(self.device.compute_dtype, self.device.device):
                    loss_sum = self.loss_fn(self.model, batch).loss_sum
                loss_sum.backward()  # type: ignore[no-untyped-call]
        finally:
            self.model.zero_grad(set_to_none=True)
            self._forget()
            if is_on_gpu:  # each size is compiled for itself, and after eight torch would compile no more
                torch.compiler.reset()

    def _forget(self) -> None:
        """What routers remember of a pass that failed holds the activations of all of it."""
        for module in self.model.modules():
            if isinstance(module, MixtureOfExperts):
                module.routing = None


def _probe(recipe: Recipe, step: _Step, session: StageSession) -> int:
    if step.device.device.type != "cuda":
        return _count_on_cpu(recipe, step, session)
    if step.is_divided:
        # Before it is divided the model has all of its gradients: that would say little of the run.
        session.log(f"{recipe.micro_batch_size} rows at a time, by estimate: weights will be divided")
        return recipe.micro_batch_size
    return _try_on_gpu(recipe, step, session)


def _count_on_cpu(recipe: Recipe, step: _Step, session: StageSession) -> int:
    """Counts tensors, so that the same memory always gives the same size; more rows would be no faster.

    Processes of one machine share its memory: each has its copy of weights, moments and gradients.
    """
    more_copies = step.num_copies - 1
    per_param = (WEIGHT_BYTES + MOMENT_BYTES) * step.num_copies + WEIGHT_BYTES * more_copies
    in_all, kept = memory_bytes(step.device.device), per_param * step.num_params
    most = max(1, min(recipe.rows_per_step, MICRO_BATCH_TOKENS // recipe.context_tokens))
    found = count_rows_that_fit(step, MEMORY_SHARE * in_all - kept, most)
    needed = f"about {(found.peak_bytes + kept) / 2**20:,.0f} MiB"
    if found.rows == 0:
        session.warn(
            f"even one row at a time takes {needed} of {in_all / 2**20:,.0f} MiB in all; if memory runs out, "
            "set activation_checkpointing, or a smaller context_tokens or depth"
        )
        return 1
    size = largest_part(recipe.rows_per_step, found.rows)
    session.log(f"memory probe: {found.rows} rows at a time take {needed}; {size} make up an update evenly")
    return size


def _try_on_gpu(recipe: Recipe, step: _Step, session: StageSession) -> int:
    """Tries equal parts of an update, the largest first, beside as much memory as the moments will take."""
    sizes = [size for size in range(1, recipe.rows_per_step + 1) if recipe.rows_per_step % size == 0]
    kept_bytes = MOMENT_BYTES + (2 * WEIGHT_BYTES if step.config.ema_decay else 0)  # an average, and its copy
    moments = torch.empty(kept_bytes * step.num_params, dtype=torch.uint8, device=step.device.device)
    size = largest_that_runs(step, sizes)
    del moments
    session.log(f"memory probe: {size} rows at a time fit")
    return size


def _name_of(device: torch.device) -> str:
    """A GPU's name and memory: what fits one need not fit another."""
    if device.type != "cuda":
        return device.type
    return f"{torch.cuda.get_device_name(device)}, {memory_bytes(device)} bytes"


def _remembered_size(path: Path, recipe: Recipe, where: str) -> int | None:
    """What an earlier start of the same run chose on such a device; None where there was none."""
    try:
        remembered = json.loads(path.read_text(encoding="utf-8"))
        size, device = remembered["micro_batch_size"], remembered["device"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = device == where and isinstance(size, int) and size > 0 and recipe.rows_per_step % size == 0
    return size if fits else None
