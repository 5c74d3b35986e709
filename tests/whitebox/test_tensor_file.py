"""What is written here is what the safetensors library reads, whatever the types and shapes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.whitebox.tensor_file import NAMES, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        f"{dtype!s}-{shape}": (torch.rand(shape, generator=generator) * 100).to(dtype)
        for dtype in NAMES
        for shape in ((3, 5), (7,), (), (0, 4))
    }
    found["not contiguous"] = torch.arange(12.0).reshape(3, 4).T
    return found


def test_the_library_reads_the_same_bits(tmp_path: Path) -> None:
    written = tensors()
    digest = write_tensors(tmp_path / "t.safetensors", written)
    read = load_file(tmp_path / "t.safetensors")
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name
    assert digest == hashlib.sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()


def test_the_order_of_names_makes_no_difference(tmp_path: Path) -> None:
    backwards = dict(reversed(tensors().items()))
    assert write_tensors(tmp_path / "a", tensors()) == write_tensors(tmp_path / "b", backwards)


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_tensors(tmp_path / "t", {"x": torch.zeros(2, dtype=torch.complex64)})
