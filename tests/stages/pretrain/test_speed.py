"""The peak that a speed is compared with: from a data sheet where the GPU is known, else measured."""

from __future__ import annotations

import pytest
import torch

from stages.pretrain.speed import peak_of


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
