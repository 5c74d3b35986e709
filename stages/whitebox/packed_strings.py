"""Many strings as one array of bytes and one of offsets, so that they can lie in a safetensors file.

A list of 100,000 Python strings takes seconds to load and 10 MB of objects; this is memory-mapped, and a
string is made only when somebody asks for it.

Shapes: N strings, B bytes of all of them in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """A read-only sequence of strings in `bytes_B` and `offsets_N1` (N + 1 offsets, the first one is 0)."""

    def __init__(self, bytes_B: np.ndarray, offsets_N1: np.ndarray) -> None:
        if len(offsets_N1) == 0 or offsets_N1[0] != 0 or offsets_N1[-1] != len(bytes_B):
            raise ValueError(
                f"offsets end at {offsets_N1[-1:]}, there are {len(bytes_B)} bytes: the file is damaged"
            )
        self.bytes_B = bytes_B
        self.offsets_N1 = offsets_N1

    @classmethod
    def pack(cls, strings: Iterable[str]) -> PackedStrings:
        """Pack `strings`; lone surrogates, which UTF-8 cannot carry, become question marks."""
        encoded = [string.encode("utf-8", errors="replace") for string in strings]
        offsets_N1 = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(item) for item in encoded], out=offsets_N1[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets_N1)

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    def __getitem__(self, row: int) -> str:
        start, end = int(self.offsets_N1[row]), int(self.offsets_N1[row + 1])
        return self.bytes_B[start:end].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        """All strings in order; one copy of the bytes, for callers that need every one of them."""
        whole = self.bytes_B.tobytes()
        for start, end in zip(self.offsets_N1[:-1].tolist(), self.offsets_N1[1:].tolist(), strict=True):
            yield whole[start:end].decode("utf-8")
