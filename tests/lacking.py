"""What a test needs and this machine may not have."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRED = "GLASSWORKS_NEEDS_DOCKER"


def lacking(what: str) -> NoReturn:
    """Skip the test; fail it where somebody has seen to it that nothing is lacking."""
    if REQUIRED in os.environ:
        pytest.fail(f"{what} ({REQUIRED} is set)")
    pytest.skip(what)
