"""The white box knows no stages: here its errors become those that the frame reports with an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stages.runtime.errors import UserError


@contextmanager
def explained() -> Iterator[None]:
    """A ValueError is the user's to mend: a setting that does not fit, or parts of different builds."""
    try:
        yield
    except ValueError as error:
        hint = "the settings of [quantize] are in stages/quantize/README.md"
        raise UserError(str(error), hint=hint) from error
