"""Arrays into files."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


def write_array(file: IO[bytes], array: NDArray[Any]) -> None:
    """The bytes of an array, in C order, at the end of an open file.

    Unlike `ndarray.tofile`, whose error for a full disk has no number to ask for. Raises OSError.
    """
    if array.size:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        file.write(data.data)
