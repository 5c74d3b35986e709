"""Training in several processes, one for each device: data parallel, with whole or with divided weights.

A training adds up gradients of summed losses and divides them once by all targets, so the processes only have
to add: whoever computed a row, its gradient is in the sum, and a rank with few targets counts for few. The
global batch is the same rows whatever the number of processes (`rank_batches.py`).

`Replicated` (DDP): every process has the whole model and the sums of all gradients.
`Sharded` (FSDP2, Zhao et al. 2023, arXiv:2304.11277): every process keeps 1/size of each weight, gradient and
moment; a layer is put together just before it computes.

Checkpoints hold whole tensors that only the first process writes, so a run may go on in another number of
processes, or the other way of dividing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.whitebox.divided_tensors import divide_like, is_divided, own_part, whole
from stages.whitebox.one_process import OneProcess

BUCKET_BYTES = 25 * 2**20
"""Gradients travel in pieces of about this size: few messages, and little memory beside them."""
WAITS_AT_MOST = timedelta(minutes=30)
"""For a process that has stopped answering, before the others give up."""


@contextmanager
def process_group(way: Literal["ddp", "fsdp"]) -> Iterator[Replicated]:
    """Join the processes that the environment names, as torchrun does: RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR, MASTER_PORT. NCCL where there are GPUs, each process with its own; else gloo."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=WAITS_AT_MOST)
    yield Replicated() if way == "ddp" else Sharded()
    dist.destroy_process_group()  # not after an error: it would wait for processes that may be gone


class Replicated(OneProcess):
    """Every process has the whole model (DDP)."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        on_gpu = dist.get_backend() == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def prepare(self, model: nn.Module) -> None:
        """All begin with the first one's weights."""
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        sums = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in buckets that are all on their way at once."""
        grads = []
        for parameter in parameters:
            if parameter.grad is None:  # unused here, perhaps not elsewhere: all send the same buckets
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        sent = [(bucket, torch.cat([g.reshape(-1) for g in bucket])) for bucket in _buckets(grads)]
        waiting = [dist.all_reduce(flat, async_op=True) for _, flat in sent]
        for (bucket, flat), work in zip(sent, waiting, strict=True):
            work.wait()
            pieces = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])

    def gradient_norm(self, grads: Sequence[Tensor]) -> float:
        """The first one's number, so that all decide alike even if their processors round differently."""
        norm = torch.nn.utils.get_total_norm(grads).to(torch.float64)
        dist.broadcast(norm, 0)
        return float(norm)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether it is up in any process."""
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def fill(self, target: Tensor, value: Tensor | None) -> None:
        """Send the first one's value to all."""
        with torch.no_grad():
            if value is not None:
                target.copy_(value)
            dist.broadcast(target.data, 0)

    def share(self, fields: dict[str, Any] | None) -> dict[str, Any] | None:
        """JSON values of the first process, in every one."""
        text = torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(text)], device=self.device)
        dist.broadcast(length, 0)
        if self.rank > 0:
            text = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    def texts(self, text: str) -> list[str]:
        """The text of every process, by rank; each must be at most 1,024 bytes long in UTF-8."""
        mine = torch.zeros(1024, dtype=torch.uint8, device=self.device)
        encoded = text.encode()[:1024]
        mine[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8, device=self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine)
        return [bytes(one.tolist()).rstrip(b"\0").decode(errors="ignore") for one in gathered]


class Sharded(Replicated):
    """Every process has its rows of each weight (FSDP2, `torch.distributed.fsdp.fully_shard`)."""

    def prepare(self, model: nn.Module) -> None:
        """Divide each layer on its own, and what is around the layers together.

        Weights travel in float32: what a step computes is what one process computes, to rounding.

        Raises:
            ValueError: the model has no layers to divide.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        layers = getattr(getattr(model, "model", None), "layers", None)
        if layers is None:
            raise ValueError(f"{type(model).__name__} has no model.layers to divide; use data_parallel = ddp")
        super().prepare(model)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums, as everywhere here, and not means
                module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sums
        register_fsdp_forward_method(model, "hidden_states")  # what losses call instead of forward

    def local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The own rows of each."""
        return [own_part(tensor) for tensor in tensors]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing is left to do: each layer's gradient was added up in its backward pass."""

    def gradient_norm(self, grads: Sequence[Tensor]) -> float:
        """Root of the sum of all parts' squares."""
        parts = self.local(grads)
        square = torch.nn.utils.get_total_norm(parts).to(torch.float64).square()
        dist.all_reduce(square)
        return float(square.sqrt())

    def whole(self, tensor: Tensor) -> Tensor:
        """All parts side by side."""
        return whole(tensor.detach())

    def fill(self, target: Tensor, value: Tensor | None) -> None:
        """Send the first one's value; each keeps its rows."""
        if not is_divided(target):
            super().fill(target, value)
            return
        received = torch.empty(target.shape, dtype=target.dtype, device=self.device)
        super().fill(received, value)
        with torch.no_grad():
            own_part(target).copy_(own_part(divide_like(received, target)))

    @contextmanager
    def reading(self, model: nn.Module) -> Iterator[None]:
        """The parts around the layers stay together meanwhile: evaluation takes the output matrix first."""
        model.unshard()
        yield
        model.reshard()


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type, about BUCKET_BYTES together."""
    bucket: list[Tensor] = []
    for grad in grads:
        num_bytes = sum(g.numel() * g.element_size() for g in bucket)
        if bucket and (num_bytes >= BUCKET_BYTES or grad.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(grad)
    if bucket:
        yield bucket
