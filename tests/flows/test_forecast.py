"""The progress of a build as a whole."""

from __future__ import annotations

import time

import pytest

from flows.forecast import Forecast


def progress(done: int, total: int) -> dict[str, object]:
    return {"event": "progress", "done": done, "total": total, "unit": "steps"}


def test_stages_weigh_what_they_took_last_time() -> None:
    forecast = Forecast({"pretrain": 90.0, "sft": 10.0})
    forecast.event("pretrain", progress(1, 2))
    assert forecast.fraction == pytest.approx(0.45)
    forecast.ended("pretrain", ran=True)
    assert forecast.fraction == pytest.approx(0.9)


def test_what_is_reused_is_no_work() -> None:
    forecast = Forecast({"pretrain": 90.0, "sft": 10.0})
    forecast.ended("pretrain", ran=False)
    assert forecast.fraction == 0.0
    forecast.event("sft", progress(1, 4))
    assert forecast.fraction == pytest.approx(0.25)
    forecast.ended("sft", ran=False)
    assert forecast.fraction == 1.0


def test_stages_without_a_history_weigh_what_is_typical_at_this_machines_pace() -> None:
    forecast = Forecast({"pretrain": 24.0, "sft": None})  # a tenth of the typical 240
    forecast.ended("pretrain", ran=True)
    assert forecast.fraction == pytest.approx(24 / (24 + 12))


def test_a_second_phase_does_not_turn_it_back() -> None:
    forecast = Forecast({"sft": 10.0})
    forecast.event("sft", progress(3, 4))
    forecast.event("sft", progress(1, 4))
    assert forecast.fraction == pytest.approx(0.75)
    forecast.event("sft", progress(4, 4))
    assert forecast.fraction < 1.0  # not before it has ended


def test_no_projection_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = Forecast({"sft": 10.0})
    assert forecast.eta_seconds is None
    assert "ETA ?" in forecast.describe()
    begin = time.monotonic()
    forecast.event("sft", progress(1, 4))
    monkeypatch.setattr(time, "monotonic", lambda: begin + 10.0)
    assert forecast.eta_seconds == pytest.approx(30.0, rel=0.01)
    assert forecast.describe() == "0/1 stages   25 %  10s so far  ETA 30s"
    forecast.ended("sft", ran=True)
    assert forecast.describe() == "1/1 stages  100 %  10s"
