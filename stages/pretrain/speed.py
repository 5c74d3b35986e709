"""How fast the machine could be at most, to say what share of that the training reaches (MFU)."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import torch

GPU_PEAK_TFLOPS = {
    # dense bfloat16 with float32 sums, from the makers' data sheets
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
PROBE_SIZES = {"cpu": 1024, "cuda": 8192}
DATA_SHEET = "data sheet"


class Peak(NamedTuple):
    """Floating-point operations per second, and where the figure is from."""

    flops_per_second: float
    source: str


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """A known GPU's data sheet, else the best of a few matrix products of our own."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, tflops in GPU_PEAK_TFLOPS.items():
            if re.search(rf"\b{known}\b", name):  # an A1000 is no A100, an L40 no L4
                return Peak(tflops * 1e12, f"{DATA_SHEET} of {known}, bfloat16")
    return measure_peak(device, dtype)


def better_peak(known: Peak, device: torch.device, dtype: torch.dtype) -> Peak:
    """The known peak, or a new measurement if that is higher: the first may have met a busy machine."""
    if known.source.startswith(DATA_SHEET):
        return known
    return max(known, measure_peak(device, dtype))


def measure_peak(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> Peak:
    """The best of `repeats` square matrix products; well under a second on a CPU."""
    size = PROBE_SIZES[device.type]
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(_seconds_of_product(a, b) for _ in range(repeats))
    kind = str(dtype).removeprefix("torch.")
    return Peak(2 * size**3 / best, f"best {size} x {size} {kind} matrix product here")


def _seconds_of_product(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    product = a @ b
    if product.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
