"""How far a build is as a whole, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from stages.runtime.events import format_seconds

#: Seconds on a laptop with two cores; they only weigh stages that never ran here against each other.
TYPICAL_SECONDS = {
    "corpus_prep": 40.0,
    "tokenizer": 30.0,
    "pretrain": 240.0,
    "sft": 120.0,
    "dpo": 60.0,
    "quantize": 20.0,
    "vector_store": 60.0,
    "agent_smoke": 45.0,
    "benchmark_eval": 45.0,
}
OTHERWISE_SECONDS = 30.0
TRUSTED_FROM = 0.03
"""Below this share of the work a projection is a guess, so none is made."""


class Forecast:
    """Progress of a build: each stage weighs what it took last time, or takes typically."""

    def __init__(self, last_seconds: Mapping[str, float | None]) -> None:
        known = {name: seconds for name, seconds in last_seconds.items() if seconds}
        typical = {name: TYPICAL_SECONDS.get(name, OTHERWISE_SECONDS) for name in last_seconds}
        # Typical figures of another machine are brought to this one's pace.
        pace = sum(known.values()) / sum(typical[name] for name in known) if known else 1.0
        self._weights = {name: known.get(name, typical[name] * pace) for name in last_seconds}
        self._done = dict.fromkeys(last_seconds, 0.0)
        self._ended: set[str] = set()
        self._started = time.monotonic()

    def event(self, stage: str, event: Mapping[str, Any]) -> None:
        """Take note of a stage's progress; a second phase that counts anew does not turn it back."""
        if event["event"] == "progress" and event["total"]:
            self._done[stage] = max(self._done[stage], min(event["done"] / event["total"], 0.99))

    def ended(self, stage: str, *, ran: bool) -> None:
        """A stage is over. What did not run was no work, and so does not count."""
        self._ended.add(stage)
        self._done[stage] = 1.0
        if not ran:
            self._weights[stage] = 0.0

    @property
    def fraction(self) -> float:
        """Share of the work that is done, 0 to 1."""
        total = sum(self._weights.values())
        done = sum(self._weights[name] * self._done[name] for name in self._weights)
        return done / total if total else len(self._ended) / max(len(self._weights), 1)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds that are left at the pace so far; None while that would be a guess."""
        fraction = self.fraction
        if fraction < TRUSTED_FROM:
            return None
        return (time.monotonic() - self._started) * (1.0 - fraction) / fraction

    def describe(self) -> str:
        """`4/9 stages  61 %  1m20s so far  ETA 50s`; at the end `9/9 stages  100 %  2m10s`."""
        eta = self.eta_seconds
        left = "ETA ?" if eta is None else f"ETA {format_seconds(eta)}"
        so_far = format_seconds(time.monotonic() - self._started)
        stages = f"{len(self._ended)}/{len(self._weights)} stages"
        if len(self._ended) == len(self._weights):
            return f"{stages}  100 %  {so_far}"
        return f"{stages}  {100 * self.fraction:3.0f} %  {so_far} so far  {left}"
