"""Sunlight for rehearsals: the same sky for the same seed and moment, whatever was asked before.

A curve has a value at each UTC minute and straight lines between, so that its integral is exact arithmetic and
a counter can be told for any moment without replaying the time before it.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import pairwise

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTES = 24 * 60
MINUTE_US = 60_000_000

WORK_PER_WH = 3_600_000 * 1_000_000 * 2 * MINUTE_US
"""Units of `Curve.work` in one Wh: mW x µs, times 2 minutes so that the half of a square stays whole."""

_KEPT_DAYS = 8  # of prefix sums per curve, about 25 kB each


@lru_cache(maxsize=2048)  # the targets of a wandering are asked for many times in a row
def _mixed(*parts: int) -> float:
    """A number from 0 to 1 that looks random and is the same on every machine (the finaliser of SplitMix64)."""
    x = 0
    for part in parts:
        x = (x + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return x / 0xFFFFFFFFFFFFFFFF


def wobble(seed: int, channel: int, at: float) -> float:
    """A smooth wandering between -1 and 1 with a new target at each whole `at`."""
    knot = math.floor(at)
    left, right = _mixed(seed, channel, knot), _mixed(seed, channel, knot + 1)
    way = at - knot
    return 2 * (left + (right - left) * way * way * (3 - 2 * way)) - 1


@dataclass(frozen=True, slots=True)
class Sky:
    """Where and under which clouds. Without a longitude noon is at twelve of the zone's standard time."""

    zone: tzinfo = UTC
    seed: int = 0
    latitude: float = 1.35
    longitude: float | None = None

    def noon(self, day: int) -> float:
        """Minutes after UTC midnight at which the sun is highest; `day` counts from the epoch."""
        if self.longitude is not None:
            return MINUTES / 2 - self.longitude * 4
        local = (EPOCH + timedelta(days=day, hours=12)).astimezone(self.zone)
        standard = (local.utcoffset() or timedelta()) - (local.dst() or timedelta())
        return MINUTES / 2 - standard.total_seconds() / 60

    def light(self, day: int) -> array[float]:
        """Share of the rated power, 0 to 1, at each minute of a UTC day counted from the epoch."""
        return _light(self, day)


@lru_cache(maxsize=64)  # 12 kB each
def _light(sky: Sky, day: int) -> array[float]:
    # Declination to a degree or so (Cooper 1969), elevation from the hour angle: zero from sunset to sunrise.
    of_year = (EPOCH + timedelta(days=day)).timetuple().tm_yday
    declination = math.radians(23.45) * math.sin(2 * math.pi * (284 + of_year) / 365)
    latitude = math.radians(sky.latitude)
    still = math.sin(latitude) * math.sin(declination)
    swing = math.cos(latitude) * math.cos(declination)
    noon = sky.noon(day)
    curve = array("d", bytes(8 * MINUTES))
    for minute in range(MINUTES):
        height = still + swing * math.cos(2 * math.pi * (minute - noon) / MINUTES)
        if height > 0:
            curve[minute] = 0.97 * height**1.15 * _clouds(sky.seed, day * MINUTES + minute, noon)
    return curve


def _clouds(seed: int, minute: int, noon: float) -> float:
    """What the clouds leave, 0.1 to 1: slow fields and small ones, more on some days than on others."""
    solar_day = math.floor((minute - noon) / MINUTES + 0.5)
    amount = _mixed(seed, 1, solar_day)
    field = 0.5 + 0.5 * wobble(seed, 2, minute / 23)
    small = 0.5 + 0.5 * wobble(seed, 3, minute / 4)
    return 1 - amount * (0.7 * field * field + 0.2 * field * small)


class Curve:
    """Power in whole mW at each minute, straight lines between, and its exact integral since an origin."""

    def __init__(self, points: Callable[[int], array[int]], origin: datetime) -> None:
        """`points` gives the mW of each minute of a UTC day. Nothing flows before the day of `origin`."""
        self._points = points
        self._first = (origin - EPOCH).days
        self._before = [0]  # of each day since the origin: what had summed up when it began
        self._days: OrderedDict[int, tuple[array[int], array[int]]] = OrderedDict()
        self._lock = threading.RLock()  # several lines and servers may ask the same meter

    def milliwatts(self, at: datetime) -> float:
        day, minute, rest = _split(at)
        values, _ = self._day(day)
        return values[minute] + (values[minute + 1] - values[minute]) * rest / MINUTE_US

    def work(self, at: datetime) -> int:
        """Energy from the origin's day to a moment, in 1/WORK_PER_WH Wh."""
        day, minute, rest = _split(at)
        if day < self._first:
            return 0
        values, sums = self._day(day)
        low, high = values[minute], values[minute + 1]
        half_minutes = self._sum_before(day) + sums[minute]
        return (half_minutes * MINUTE_US + 2 * low * rest) * MINUTE_US + (high - low) * rest * rest

    def _sum_before(self, day: int) -> int:
        with self._lock:
            while len(self._before) <= day - self._first:
                reached = self._first + len(self._before) - 1
                self._before.append(self._before[-1] + self._day(reached)[1][MINUTES])
            return self._before[day - self._first]

    def _day(self, day: int) -> tuple[array[int], array[int]]:
        """The minutes of a day with the first of the next one, and the sums of neighbours (mW x half a minute)."""
        with self._lock:
            if day in self._days:
                self._days.move_to_end(day)
                return self._days[day]
            values = array("q", self._points(day))
            values.append(self._points(day + 1)[0])
            sums = array("q", [0])
            for left, right in pairwise(values):
                sums.append(sums[-1] + left + right)
            self._days[day] = (values, sums)
            if len(self._days) > _KEPT_DAYS:
                self._days.popitem(last=False)
            return self._days[day]


def _split(at: datetime) -> tuple[int, int, int]:
    """Day since the epoch, minute of the day, microseconds of the minute; in whole numbers."""
    since = at - EPOCH
    minute, seconds = divmod(since.seconds, 60)
    return since.days, minute, seconds * 1_000_000 + since.microseconds
