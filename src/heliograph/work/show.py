"""Shows outputs what the rounds came to and how the site is. Best effort: they may fail, they may not block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from zoneinfo import ZoneInfo

import structlog

from heliograph.core import daily
from heliograph.core.health import Health, OutputHealth
from heliograph.core.shown import DayFigure, Sample
from heliograph.ports import Clock, Output
from heliograph.store import Store

log = structlog.get_logger()

DAYS = 14
"""Local days that outputs are shown, the newest ones."""
CLOSE_WITHIN = 1.0
"""Seconds for all of them."""


class Audience:
    """The outputs of a site, each guarded: a fault of ours in one of them stops neither the others nor the metering."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = tuple(outputs)
        self._failed: set[tuple[str, str]] = set()

    def __bool__(self) -> bool:
        return bool(self._outputs)

    def start(self) -> None:
        for output in self._outputs:
            self._guarded(output, "start", lambda one: one.start())

    def sample(self, sample: Sample) -> None:
        for output in self._outputs:
            self._guarded(output, "sample", lambda one: one.sample(sample))

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        for output in self._outputs:
            self._guarded(output, "picture", lambda one: one.picture(health, days))

    def states(self) -> tuple[OutputHealth, ...]:
        found: list[OutputHealth] = []
        for output in self._outputs:
            self._guarded(output, "state", lambda one: found.append(one.state()))
        return tuple(found)

    def close(self) -> None:
        """All at once, and none is waited for longer than it takes to say good-bye."""
        ends = [
            threading.Thread(
                target=self._guarded, args=(output, "close", lambda one: one.close()), name="close", daemon=True
            )
            for output in self._outputs
        ]
        for end in ends:
            end.start()
        until = time.monotonic() + CLOSE_WITHIN
        for end in ends:
            end.join(max(0.0, until - time.monotonic()))

    def _guarded(self, output: Output, what: str, call: Callable[[Output], None]) -> None:
        try:
            call(output)
        except Exception:  # the port forbids it; its traceback is kept once
            if (output.name, what) not in self._failed:
                self._failed.add((output.name, what))
                log.exception("output_crashed", output=output.name, doing=what)


def figures(store: Store, clock: Clock, zone: ZoneInfo) -> tuple[DayFigure, ...]:
    """The newest local days of all meters, by meter and day; a day that is not over is not among them."""
    first = daily.day_of(clock.now(), zone) - timedelta(days=DAYS)
    deliveries = store.outbox.states(first)
    closed = [
        DayFigure(
            day.meter,
            day.day,
            "closed",
            day.period_wh,
            day.total_wh,
            day.estimated,
            "",
            deliveries.get((day.meter, day.day), {}),
        )
        for day in store.days.all(first=first)
    ]
    waiting = [
        DayFigure(held.meter, held.day, held.kind, reason=held.reason)
        for held in store.days.held()
        if held.day >= first
    ]
    return tuple(sorted([*closed, *waiting], key=lambda one: (one.meter, one.day)))
