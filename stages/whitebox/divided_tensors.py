"""Weights that are divided among processes (FSDP2 keeps them as DTensors): put together, and cut up again.

Everything here gives a plain tensor back as it is, without importing what only divided ones need.
"""

from __future__ import annotations

from torch import Tensor


def is_divided(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return hasattr(tensor, "full_tensor")  # asking for the class would import it


def whole(tensor: Tensor) -> Tensor:
    """All parts side by side; every process has to ask for it."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The rows that this process holds, on the same memory."""
    return tensor.to_local() if is_divided(tensor) else tensor


def divide_like(whole_tensor: Tensor, divided: Tensor) -> Tensor:
    """`whole_tensor`, which every process has, divided as `divided` is."""
    if not is_divided(divided):
        return whole_tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole_tensor, divided.device_mesh, divided.placements, src_data_rank=None)
