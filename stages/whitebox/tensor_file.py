"""Writing a safetensors file straight out of memory, hashed on the way.

`safetensors.torch.save_file` copies every tensor into bytes first, which doubles the memory of a checkpoint,
and the hash of the file would be a second reading of it. The format is three parts: the length of the header
in 8 bytes, the header as JSON, and the tensors one behind the other
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write CPU tensors under their names; the same tensors give the same bytes. Returns the sha256 in hex.

    Raises:
        OSError: the file could not be written, such as on a full disk; what was written of it stays.
        KeyError: a tensor has a type that is not in `NAMES`.
    """
    # The widest types first, so that each tensor lies at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries, end = {}, 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(header).to_bytes(8, "little"), header, *(bytes_of(tensors[n]) for n in names)):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, which are not copied where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)  # a scalar has no last dimension to view as bytes
    return memoryview(flat.view(torch.uint8).numpy())
