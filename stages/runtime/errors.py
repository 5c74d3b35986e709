"""Errors that say what was found, what was expected and what to type next.

GlassworksError          anything that we report without a traceback
├── UserError       2    configuration, input or data that the user can mend; never retried
├── ContractError   3    a part does not keep its contract
├── RetryableError  75   may work next time: full disk, changed input, lost lease
└── StopRequested   143  asked to stop (SIGTERM, Ctrl-C); a checkpoint was saved where the stage keeps one
"""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable
from pathlib import Path


class GlassworksError(Exception):
    """Base of all errors with a message for a person. `hint` is the next command or change to try."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UserError(GlassworksError):
    """The user's mistake: a wrong setting, a missing or unreadable input."""

    exit_code = 2


class ContractError(GlassworksError):
    """An input or an output does not keep the contract that it claims."""

    exit_code = 3


class RetryableError(GlassworksError):
    """The same command may succeed later."""

    exit_code = 75


class StopRequested(GlassworksError):
    """The stage was asked to stop and did so in good order."""

    exit_code = 143


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'depth'?)` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def disk_full(who: str, folder: Path) -> RetryableError:
    """The error of somebody who could not write to the disk that holds `folder`."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return RetryableError(
        f"{who} could not write: the disk that holds {folder} is full ({free / 2**20:.1f} MiB free)",
        hint="free some space (`glassworks gc` shows what the store can drop) and build again",
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that it was raised from, is a full disk.

    Arrow, DuckDB and safetensors raise their own types, so the text counts where there is no errno.
    """
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "no space left on device" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
