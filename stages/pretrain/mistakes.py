"""The white box knows no stages: here its errors become those that the frame reports with an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stages.runtime.errors import StopRequested, UserError
from stages.whitebox.device import is_out_of_memory
from stages.whitebox.trainer import TrainingStopped


@contextmanager
def explained() -> Iterator[None]:
    """ValueError and lack of memory are the user's to mend; a stop in good order is a stop."""
    try:
        yield
    except TrainingStopped as stopped:
        raise StopRequested(str(stopped), hint="build again to go on") from None
    except ValueError as error:
        raise UserError(
            str(error), hint="the settings of [pretrain] are in stages/pretrain/README.md"
        ) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory ran out: {str(error).splitlines()[0]}",
            hint="set [pretrain] micro_batch_size lower (the result stays the same), or depth",
        ) from error
