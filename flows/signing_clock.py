"""Requests are signed with the time, and storage refuses a time that is 15 minutes off its own.

A host with a wrong clock can build as well as any: nothing else of ours compares clocks. The refusal tells
the storage's time, so from then on we sign with that. botocore has no such correction, and no place for one
but the function that it asks for the time.
"""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from flows.storage_errors import error_answer
from stages.runtime.events import format_seconds

REFUSALS = {"RequestTimeTooSkewed", "RequestExpired"}

_ahead_of_us = timedelta()
_lock = threading.Lock()


def install() -> None:
    """Have botocore sign with the storage's time. Once is enough; twice does no harm."""
    import botocore.auth
    import botocore.compat

    botocore.auth.get_current_datetime = _now


def host_now() -> datetime:
    """What this host takes for the time."""
    return datetime.now(UTC)


def _now(remove_tzinfo: bool = True) -> datetime:
    now = host_now() + _ahead_of_us
    return now.replace(tzinfo=None) if remove_tzinfo else now


def corrected(error: BaseException) -> bool:
    """Whether the error was our clock and is mended now, so that the same request may succeed."""
    global _ahead_of_us
    answer = error_answer(error)
    if answer is None or answer["Error"].get("Code") not in REFUSALS:
        return False
    if (theirs := _server_time(answer)) is None:
        return False
    with _lock:
        off = theirs - host_now()
        changed = abs(off - _ahead_of_us) > timedelta(minutes=1)
        _ahead_of_us = off
    if changed:
        _tell(off)
    return True


def _server_time(answer: dict[str, Any]) -> datetime | None:
    text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return parsedate_to_datetime(text) if text else None
    except ValueError:
        return None


def _tell(off: timedelta) -> None:
    far, way = (
        format_seconds(60 * round(abs(off.total_seconds()) / 60)),
        "behind" if off > timedelta() else "ahead of",
    )
    said = f"warning: this host's clock is {far} {way} the store's; requests are signed with the store's time"
    print(said, file=sys.stderr, flush=True)
