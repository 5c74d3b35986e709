"""Being asked to stop: heard once, and then there is time to save."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.runtime.events import EventLog
from stages.runtime.session import StageSession

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


class AskedInBetween(StageSession):
    """SIGTERM arrives right after it has looked for the first time."""

    looks = 0
    flag = False

    @property
    def _stop(self) -> bool:
        seen, self.looks = self.flag, self.looks + 1
        if self.looks == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return seen

    @_stop.setter
    def _stop(self, value: bool) -> None:
        self.flag = value


@pytest.fixture
def session(tmp_path: Path) -> Iterator[StageSession]:
    before = {number: signal.getsignal(number) for number in HANDLED}
    made = AskedInBetween("fake", tmp_path, EventLog(tmp_path / "events.jsonl", as_json=True))
    made.install_signal_handlers()
    yield made
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_who_has_heard_is_not_interrupted(session: StageSession) -> None:
    while not session.should_stop():
        assert session.looks < 3  # type: ignore[attr-defined]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
