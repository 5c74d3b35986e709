"""The tensors of a running training: copied out between two steps, and put back.

    model.NAME                    weights that are trained, and buffers; frozen weights are what they were
    optimizer.KEY.NAME            moments and step counts of the parameter NAME
    random.cpu, random.cuda       the generators

All are whole, whoever holds parts of them: only the first process has them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.whitebox.divided_tensors import is_divided
from stages.whitebox.empty import without_values
from stages.whitebox.model import CausalLM
from stages.whitebox.one_process import OneProcess
from stages.whitebox.tensor_file import NAMES, bytes_of
from stages.whitebox.training_state import random_states

DTYPES = {name: dtype for dtype, name in NAMES.items()}

Owner = tuple[str, nn.Parameter, torch.optim.Optimizer]


def changing(model: nn.Module) -> dict[str, Tensor]:
    """The part of `model.state_dict()` that a training changes: all of it but frozen weights."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def frozen_digest(model: nn.Module, processes: OneProcess) -> str | None:
    """The sha256 of everything that no checkpoint holds, so that none goes on beside other frozen weights.

    None where nothing is frozen.
    """
    kept = changing(model).keys()
    left_out = [
        (name, t) for name, t in (*model.named_parameters(), *model.named_buffers()) if name not in kept
    ]
    digest = hashlib.sha256()
    for name, tensor in left_out:
        whole = processes.whole(tensor.detach()).cpu().contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        digest.update(bytes_of(whole))
    return digest.hexdigest() if left_out else None


def owners(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[Owner]:
    """Every trained parameter by name, with the optimizer that updates it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[parameter], parameter, optimizer


def take(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], processes: OneProcess
) -> dict[str, Tensor]:
    """Copies on the CPU, so that the training may go on; empty but in the first process."""
    tensors = {f"model.{name}": tensor for name, tensor in changing(model).items()}
    for name, parameter, optimizer in owners(model, optimizers):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = processes.whole(tensor)  # one after the other: never all of them whole on a device
        if processes.rank == 0:
            copies[name] = whole.to("cpu", copy=True).contiguous()
    return {**copies, **random_states()} if processes.rank == 0 else {}


def kinds(saved: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Type and shape of each tensor, as JSON values: what a process knows that has none of them."""
    return {name: [NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in saved.items()}


def put_back(
    saved: Mapping[str, Tensor],
    kinds_of_all: Mapping[str, list[Any]],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    processes: OneProcess,
) -> None:
    """Give model and optimizers what was saved: `saved` in the first process, its `kinds` in all."""
    for name, target in changing(model).items():
        processes.fill(target, saved.get(f"model.{name}"))
    for saved_name, key, parameter, optimizer in _of_optimizers(kinds_of_all, model, optimizers):
        dtype, shape = DTYPES[kinds_of_all[saved_name][0]], kinds_of_all[saved_name][1]
        if shape:
            target = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        else:  # a count of steps
            target = torch.zeros((), dtype=dtype, device=parameter.device)
        processes.fill(target, saved.get(saved_name))
        optimizer.state[parameter][key] = target


def _of_optimizers(
    names: Iterable[str], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, str, nn.Parameter, torch.optim.Optimizer]]:
    """Saved name, key, parameter and optimizer of everything that belongs to a parameter which is trained."""
    found = {name: (parameter, optimizer) for name, parameter, optimizer in owners(model, optimizers)}
    for saved_name in sorted(names):
        kind, _, rest = saved_name.partition(".")
        key, _, name = rest.partition(".")
        if kind == "optimizer" and name in found:
            yield saved_name, key, *found[name]


def whole_model(model: CausalLM, processes: OneProcess) -> CausalLM:
    """The model with whole weights, to be written: itself, or a copy on the CPU where it is divided.

    Every process has to ask; only the first one gets the copy's values.
    """
    if not any(is_divided(parameter) for parameter in model.parameters()):
        return model
    weights = {}
    for name, tensor in model.state_dict().items():
        whole = processes.whole(tensor)
        if processes.rank == 0:
            weights[name] = whole.cpu()
    with without_values():
        copy = CausalLM(model.config)
    if processes.rank == 0:
        copy.load_state_dict(weights, assign=True)
    return copy


def check_shapes(
    saved: Mapping[str, Tensor],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    folder: Path,
) -> None:
    """Whether a checkpoint is of this model.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape; it names the first.
    """
    wanted = {f"model.{name}": tuple(tensor.shape) for name, tensor in changing(model).items()}
    found = {name: tuple(t.shape) for name, t in saved.items() if name.startswith("model.")}
    for saved_name, _, parameter, _ in _of_optimizers(saved, model, optimizers):
        if shape := tuple(saved[saved_name].shape):  # counts of steps have none
            found[saved_name], wanted[saved_name] = shape, tuple(parameter.shape)
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"the checkpoints in {folder} are of another model: {name} has shape "
                f"{found.get(name, 'missing')}, this model has {wanted.get(name, 'no such tensor')}; delete "
                "that folder to begin anew, or take back the change"
            )
