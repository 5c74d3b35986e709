"""What a stage says on its way, and the error that its end is."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import Any

from stages.runtime.errors import (
    ContractError,
    GlassworksError,
    RetryableError,
    StopRequested,
    UserError,
)
from stages.runtime.spec import StageSpec

_ERRORS = {kind.exit_code: kind for kind in (UserError, ContractError, RetryableError, StopRequested)}


def parse_event(line: bytes) -> dict[str, Any]:
    """One line of a stage's output; what is no event of ours, a library's warning, becomes a log line."""
    text = line.decode("utf-8", "replace").rstrip()
    with contextlib.suppress(ValueError):
        event = json.loads(text)
        if isinstance(event, dict) and "event" in event:
            return event
    return {"event": "log", "level": "info", "message": text}


def stage_error(spec: StageSpec, code: int, event: dict[str, Any] | None, errors: str) -> GlassworksError:
    """The error for an exit code (negative: a signal), the last error event, and the text on stderr."""
    kind = _ERRORS.get(code, GlassworksError)
    if event is not None:
        trace = f"\n{errors.strip()}" if "Traceback" in errors else ""
        return kind(f"{event['message']}{trace}", hint=event.get("hint", ""))
    if code < 0:
        name = signal.Signals(-code).name
        hint = "the machine may be out of memory: see `glassworks doctor`; build again to go on"
        return RetryableError(f"{spec.name} was killed by {name}", hint=hint)
    last = "\n".join(errors.strip().splitlines()[-12:])
    return kind(
        f"{spec.name} ended with exit code {code}\n{last}", hint=f"python -m stages.{spec.name} --help"
    )
