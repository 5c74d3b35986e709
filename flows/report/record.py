"""What happened in a run: which stages were reused, which ran, why, and how it ended."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["hit", "ran", "trusted", "failed", "not reached"]
Status = Literal["completed", "failed", "stopped"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageRecord(_Record):
    """One stage of the run."""

    name: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    """Why it ran, in the fields that changed; empty for a hit."""
    fingerprint: str | None = None
    """The artifact that the run used; None where there is none."""
    seconds: float = 0.0
    """Wall-clock seconds in this run, which for a hit are those of checking it."""
    error: str = ""


class RunRecord(_Record):
    """The run as a whole. It is stored as STORE/runs/<run_id>.json."""

    run_id: str
    preset: str
    started_at: str
    """UTC, ISO 8601."""
    seconds: float
    command: str
    status: Status
    stages: tuple[StageRecord, ...] = ()
    configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Stage -> its full configuration as plain JSON values."""
