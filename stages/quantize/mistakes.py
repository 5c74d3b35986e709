"""The white box knows no stages: here its errors become those that the frame reports with an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stages.runtime.errors import UserError
from stages.whitebox.config import ModelConfig


@contextmanager
def explained() -> Iterator[None]:
    """A ValueError is the user's to mend: a setting that does not fit, or parts of different builds."""
    try:
        yield
    except ValueError as error:
        hint = "the settings of [quantize] are in stages/quantize/README.md"
        raise UserError(str(error), hint=hint) from error


def refuse_experts(config: ModelConfig) -> None:
    """Their matrices are multiplied in groups, for which there are no integer kernels here."""
    if config.num_experts:
        raise UserError(
            f"the model chooses among {config.num_experts} experts per layer; this stage quantizes "
            "models with one feed-forward layer",
            hint="leave num_experts out of [pretrain], or take another architecture than minimind-moe",
        )
