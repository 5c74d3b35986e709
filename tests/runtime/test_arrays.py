"""Arrays into files: numpy's own bytes, and a full disk that can be told from other errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from stages.runtime.arrays import write_array
from stages.runtime.errors import is_disk_full

ARRAYS = [
    np.arange(7, dtype=np.uint16),
    np.arange(12).reshape(3, 4).T,
    np.empty(0, np.int64),
    np.array([(1, 2.5), (3, 4.5)], dtype=[("id", "<i4"), ("score", "<f8")])[::-1],
]


@pytest.mark.parametrize("array", ARRAYS, ids=["plain", "turned", "empty", "records"])
def test_the_bytes_are_numpys(array: np.ndarray) -> None:
    file = io.BytesIO()
    write_array(file, array)
    assert file.getvalue() == array.tobytes()


def test_a_full_disk_is_one() -> None:
    with Path("/dev/full").open("wb") as file, pytest.raises(OSError) as raised:
        write_array(file, np.zeros(1 << 20, np.uint8))
        file.flush()
    assert is_disk_full(raised.value)
