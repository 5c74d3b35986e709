"""Rows of equal size on disk that are read in any order without ever being mapped into memory.

A memory map would count every page that was looked at as resident; 5 million signatures are 2.2 GB.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.runtime.arrays import write_array

MAX_GAP_ROWS = 8
"""Rows that lie nearer are read in one go: a read of its own costs about as much as so many rows."""
MAX_RUN_ROWS = 4096


class RowFile:
    """A raw file of [rows, width] numbers. Append first, then read."""

    def __init__(self, path: Path, dtype: np.dtype, width: int) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.width = width

    @classmethod
    def create(cls, path: Path, dtype: np.dtype, width: int) -> RowFile:
        """Begin with an empty file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return cls(path, dtype, width)

    def __len__(self) -> int:
        return self.path.stat().st_size // (self.dtype.itemsize * self.width)

    def append(self, rows: NDArray) -> None:
        """Append rows [n, width]."""
        with self.path.open("ab") as file:
            write_array(file, np.asarray(rows, self.dtype))

    def read(self, rows: NDArray[np.integer]) -> NDArray:
        """[n, width] of the given row numbers, in any order and with repeats."""
        wanted, places = np.unique(rows, return_inverse=True)
        found = np.empty((len(wanted), self.width), self.dtype)
        wanted = wanted.astype(np.int64)
        gaps = np.flatnonzero(np.diff(wanted) > MAX_GAP_ROWS) + 1
        breaks = np.union1d(gaps, np.arange(MAX_RUN_ROWS, len(wanted), MAX_RUN_ROWS))
        size = self.dtype.itemsize * self.width
        with self.path.open("rb", buffering=0) as file:
            for run in np.split(np.arange(len(wanted)), breaks) if len(wanted) else ():
                first, last = int(wanted[run[0]]), int(wanted[run[-1]])
                data = os.pread(file.fileno(), (last - first + 1) * size, first * size)
                block = np.frombuffer(data, self.dtype).reshape(-1, self.width)
                found[run] = block[wanted[run] - first]
        return found[places]
