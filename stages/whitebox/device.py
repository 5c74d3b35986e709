"""Where to compute, and in which type: chosen by what the processor says that it can do, and said aloud.

Weights, optimizer and loss stay in float32 everywhere; the type chosen here is that of the matrix products.
Training on a CPU with bfloat16 instructions ran 2.5 times as fast with it; a CPU without them emulates it,
at less than float32's speed (tests/benchmarks/pretrain_step.py measures both).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_OUT_OF_MEMORY_PHRASES = ("out of memory", "can't allocate memory", "not enough memory")
_KEPT_BLOCK_BYTES = 2**26
"""Larger ones, as of a large vocabulary's logits, go back to the system at once."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's malloc.h
_BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


Precision = Literal["auto", "float32", "bfloat16"]


class Device(NamedTuple):
    """A device, the type of the matrix products on it, and why that one."""

    device: torch.device
    compute_dtype: torch.dtype
    reason: str


def pick_device(precision: Precision = "auto") -> Device:
    """A CUDA GPU if there is one, else the CPU; bfloat16 where the hardware multiplies it, else float32.

    float16 is never chosen: without loss scaling its gradients underflow.

    Args:
        precision: "float32" or "bfloat16" has it so, whatever the hardware is good at.
    """
    found = _fastest()
    if precision == "auto":
        return found
    return Device(found.device, getattr(torch, precision), f"precision is {precision}")


def _fastest() -> Device:
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.get_device_capability() >= (8, 0):
            return Device(torch.device("cuda"), torch.bfloat16, f"{name} multiplies bfloat16")
        return Device(torch.device("cuda"), torch.float32, f"{name} has no bfloat16 units, so float32")
    found = [flag for flag in _BFLOAT16_FLAGS if flag in cpu_flags()]
    if found:
        return Device(torch.device("cpu"), torch.bfloat16, f"the CPU multiplies bfloat16 ({found[0]})")
    return Device(
        torch.device("cpu"), torch.float32, "no GPU, and the CPU has no bfloat16 instructions, so float32"
    )


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The type in which a matrix product with `x` is computed: autocast's, else its own."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


def in_product_dtype(x: torch.Tensor) -> torch.Tensor:
    """`x` as a product takes it: one copy for all products, where autocast makes one for each."""
    return x.to(product_dtype(x))


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets that Linux reports ("flags" on x86, "Features" on ARM); empty on other systems."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(values.split())
    return frozenset()


def fix_threads(num_threads: int = 0) -> int:
    """Sets the number of threads of one operation and returns it; 0 means all cores of this process.

    Sums are split among threads, so another number gives other last bits: it is fixed once, and recorded.
    Call it before any computation: MKL reads its settings once.
    """
    _split_sums_the_same_each_time()
    # oneDNN, which multiplies bfloat16 on CPUs, writes a program for every shape. It would keep 1,024, which
    # take a gigabyte; to write one anew takes a third of a millisecond.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    keep_freed_memory()
    if num_threads == 0:
        num_threads = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    torch.set_num_threads(num_threads)
    return num_threads


def _split_sums_the_same_each_time() -> None:
    """A number of threads is not enough: OpenMP may use fewer on a busy machine, MKL may split otherwise.

    MKL promises the same bits on every run only in this mode ("Conditional Numerical Reproducibility" in its
    guide): static schedules, and blocks that do not follow the cache sizes that it finds. On a Xeon with
    AVX-512 it gave the bits and the speed of MKL without it. The user's own choice goes first.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    openmp = ctypes.CDLL(None)
    if hasattr(openmp, "omp_set_dynamic"):  # not where torch was built without OpenMP
        openmp.omp_set_dynamic(0)


def keep_freed_memory() -> bool:
    """Lets this process use its freed memory again instead of handing it back; whether the system can.

    Each step makes and drops the same tensors. By default glibc returns large ones to the system, which then
    fills new pages with zeros: tens of thousands of page faults in a step, a tenth of its time on a virtual
    machine. The peak stays the same.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # macOS, musl
        return False
    return bool(
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    )


def memory_bytes(device: torch.device) -> int:
    """All memory of the device; on a CPU no more than the container may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised it because memory ran out, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY_PHRASES)


@functools.cache
def can_compile(kind: str) -> bool:
    """Whether `torch.compile` works for devices of this kind; tried once."""
    return not why_not_compile(torch.device(kind))


def why_not_compile(device: torch.device) -> str:
    """Why `torch.compile` does not work here (no C++ compiler, no Triton); "" when it does.

    Tried and not guessed: the trial takes a few seconds, less than the error in the middle of a run costs.
    """
    trial: Callable[[torch.Tensor], torch.Tensor] = torch.compile(lambda x: x * 2 + 1)
    try:
        trial(torch.ones(8, device=device))
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""
