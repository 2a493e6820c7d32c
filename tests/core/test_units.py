"""Conversions for people."""

from __future__ import annotations

from dphpc.core.units import duration


def test_duration_in_hours_minutes_and_seconds() -> None:
    assert [duration(0.4), duration(3661.0), duration(359999)] == ["0:00:00", "1:01:01", "99:59:59"]
