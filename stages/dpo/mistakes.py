"""Errors of the white box as those that the frame reports with an exit code and a hint."""

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
        raise UserError(str(error), hint="the settings of [dpo] are in stages/dpo/README.md") from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory ran out: {str(error).splitlines()[0]}",
            hint="set [dpo] micro_batch_pairs lower: the result stays the same to rounding; grpo and ppo "
            "also hold prompts_per_step x group_size answers of max_answer_tokens",
        ) from error
