"""Thins old samples: fine for weeks, hourly for a year and more, borders' readings for ever; sooner on a full card."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from heliograph.core.site import Meter
from heliograph.ports import Clock
from heliograph.store import Store

# Batches that one round of making room goes through.
BATCHES = 20
# Bytes of log that thinning one sample may take, so that a batch fits into the space that was reserved for it.
BYTES_A_SAMPLE = 2048


def prune(store: Store, clock: Clock, fine: timedelta, hourly: timedelta) -> int:
    """Removes a bounded number of samples; on an untrusted clock none, for their age is not known."""
    if not clock.trusted():
        return 0
    now = clock.now()
    return store.readings.thin(now - fine, hourly=True) + store.readings.thin(now - hourly, hourly=False)


def make_room(store: Store, clock: Clock, meters: Sequence[Meter]) -> int:
    """Takes the reserve back when there is room for it; until then thins what lies behind the closed days.

    The notes about earlier thinning go first, then the samples between the hours. What the open day may rest on stays,
    and so does everything about days.
    """
    if store.reserve.hold() or not clock.trusted():
        return 0
    store.journal.forget("pruned")
    borders = [store.days.last_border(meter.id) for meter in meters]
    before = min((border.at for border in borders if border is not None), default=None)
    if before is None or None in borders:
        return 0
    batch = max(100, store.reserve.size // BYTES_A_SAMPLE)
    gone = 0
    for _ in range(BATCHES):
        thinned = store.readings.thin(before, hourly=True, batch=batch)
        store.fold()
        gone += thinned
        if not thinned:
            break
    return gone
