"""The tensors of a running training: copied out between two steps, and put back.

    model.NAME                    weights and buffers
    optimizer.KEY.NAME            moments and step counts of the parameter NAME
    random.cpu, random.cuda       the generators

All are whole, whoever holds parts of them: only the first process has them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.whitebox.divided_tensors import is_divided
from stages.whitebox.empty import without_values
from stages.whitebox.model import CausalLM
from stages.whitebox.one_process import OneProcess
from stages.whitebox.training_state import random_states

STEP_COUNT = "step"
OPTIMIZER_STATE = (STEP_COUNT, "exp_avg", "exp_avg_sq", "momentum")

Owner = tuple[str, nn.Parameter, torch.optim.Optimizer]


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
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter, optimizer in owners(model, optimizers):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = processes.whole(tensor)  # one after the other: never all of them whole on a device
        if processes.rank == 0:
            copies[name] = whole.to("cpu", copy=True).contiguous()
    return {**copies, **random_states()} if processes.rank == 0 else {}


def put_back(
    saved: Mapping[str, Tensor],
    names: Sequence[str],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    processes: OneProcess,
) -> None:
    """Give model and optimizers what was saved: `saved` in the first process, its `names` in all."""
    for name, target in model.state_dict().items():
        processes.fill(target, saved.get(f"model.{name}"))
    known = set(names)
    for name, parameter, optimizer in owners(model, optimizers):
        for key in OPTIMIZER_STATE:
            if (saved_name := f"optimizer.{key}.{name}") not in known:
                continue
            count = torch.zeros((), device=parameter.device)
            target = count if key == STEP_COUNT else torch.zeros_like(parameter, requires_grad=False)
            processes.fill(target, saved.get(saved_name))
            optimizer.state[parameter][key] = target


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
    wanted = {f"model.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in saved.items() if name.startswith("model.")}
    for name, parameter, _ in owners(model, optimizers):
        for key in OPTIMIZER_STATE:
            if (saved_name := f"optimizer.{key}.{name}") in saved:
                found[saved_name] = tuple(saved[saved_name].shape)
                wanted[saved_name] = () if key == STEP_COUNT else tuple(parameter.shape)
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"the checkpoints in {folder} are of another model: {name} has shape "
                f"{found.get(name, 'missing')}, this model has {wanted.get(name, 'no such tensor')}; delete "
                "that folder to begin anew, or take back the change"
            )
