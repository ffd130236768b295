"""A second witness for the clock: the Date of a platform's answer, where the kernel does not vouch for the wall time.

It is never set by that, only trusted: whoever keeps the time (chrony, a host, a router) may be unknown to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import structlog

from heliograph.core import durations
from heliograph.ports import Clock, Uplink

log = structlog.get_logger()

AGREES = timedelta(seconds=2)
# An answer that took longer tells too little about when it was dated.
SLOW = timedelta(seconds=5)


def witness(
    uplinks: Sequence[Uplink], clock: Clock, told: Callable[[str, float], None] = lambda _name, _ahead: None
) -> str:
    """Asks the platforms in turn, where the clock wants it; returns what speaks against the clock, or ''.

    `told`: which platform it was, and by how many seconds our clock is ahead of its, half a second either way.
    """
    if not clock.wants_witness():
        return ""
    for uplink in uplinks:
        behind = measured(uplink, clock)
        if behind is None:
            continue
        told(uplink.name, -sum(behind, timedelta(0)).total_seconds() / 2)
        against = _in_words(behind, uplink)
        if not against:
            clock.vouch()
            log.info("clock_vouched", by=uplink.name)
        return against
    return ""


def beside(uplink: Uplink, clock: Clock) -> str | None:
    """By how much the clock is off beside a platform's: "3 h behind redex's", '' where they agree; None: not told."""
    behind = measured(uplink, clock)
    return None if behind is None else _in_words(behind, uplink)


def measured(uplink: Uplink, clock: Clock) -> tuple[timedelta, timedelta] | None:
    """The least and the most by which the clock is behind a platform's; None: not told."""
    before, since = clock.now(), clock.since_boot()
    date = uplink.date()
    took = timedelta(seconds=clock.since_boot() - since)
    if date is None or took > SLOW:
        return None
    # Dated between question and answer, and cut to whole seconds.
    return date - (before + took), date + timedelta(seconds=1) - before


def _in_words(behind: tuple[timedelta, timedelta], uplink: Uplink) -> str:
    early, late = behind
    if early <= AGREES and late >= -AGREES:
        return ""
    apart = early if early > AGREES else -late
    return f"{durations.shown(apart)} {'behind' if early > AGREES else 'ahead of'} {uplink.name}'s"
