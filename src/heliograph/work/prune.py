"""Thins old samples: fine for weeks, hourly for a year and more, borders' readings for ever."""

from __future__ import annotations

from datetime import timedelta

from heliograph.ports import Clock
from heliograph.store import Store


def prune(store: Store, clock: Clock, fine: timedelta, hourly: timedelta) -> int:
    """Removes a bounded number of samples; on an untrusted clock none, for their age is not known."""
    if not clock.trusted():
        return 0
    now = clock.now()
    return store.readings.thin(now - fine, hourly=True) + store.readings.thin(now - hourly, hourly=False)
