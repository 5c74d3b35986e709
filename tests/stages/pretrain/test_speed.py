"""The peak that a speed is compared with: from a data sheet where the GPU is known, else measured."""

from __future__ import annotations

import pytest
import torch

from stages.pretrain import speed
from stages.pretrain.speed import Peak, better_peak, peak_of


def test_a_cpu_is_measured() -> None:
    peak = peak_of(torch.device("cpu"), torch.float32)
    assert peak.flops_per_second > 1e8
    assert "matrix product here" in peak.source


@pytest.mark.parametrize(
    ("name", "tflops"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L4", 121)]
)
def test_known_gpus_have_their_data_sheets_figure(
    monkeypatch: pytest.MonkeyPatch, name: str, tflops: float
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    peak = peak_of(torch.device("cuda"), torch.bfloat16)
    assert peak.flops_per_second == tflops * 1e12
    assert peak.source.startswith("data sheet")


@pytest.mark.parametrize("name", ["NVIDIA RTX A1000", "NVIDIA L40", "NVIDIA A10G"])
def test_a_name_that_contains_a_known_one_is_measured(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    monkeypatch.setattr(speed, "measure_peak", lambda *_: Peak(1.0, "measured"))
    assert peak_of(torch.device("cuda"), torch.bfloat16) == Peak(1.0, "measured")


def test_a_higher_measurement_replaces_a_lower_one_and_no_data_sheet() -> None:
    cpu = torch.device("cpu")
    assert better_peak(Peak(1.0, "measured"), cpu, torch.float32).flops_per_second > 1.0
    fast, printed = Peak(1e30, "measured"), Peak(1.0, "data sheet of some GPU")
    assert better_peak(fast, cpu, torch.float32) == fast
    assert better_peak(printed, cpu, torch.float32) == printed
