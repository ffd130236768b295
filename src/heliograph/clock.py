"""The only place that asks what time it is."""

from __future__ import annotations

import ctypes
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
# A witness' word is asked for anew every hour and counts for six: 100 ppm of drift are 2 s in that time.
VOUCH_AGAIN = 3600.0
VOUCH_LASTS = 6 * 3600.0
# The wall clock was set when it moved by this much (seconds) against the boot-time clock.
STEP = 2.5
_TIME_ERROR = 5  # adjtimex(2): the kernel's clock is not synchronized


class SystemClock:
    """The machine's clock; trusted when the kernel or systemd-timesyncd calls it synchronised, when a second witness
    has lately agreed with it, or always if told so.
    """

    rate = 1.0

    def __init__(self, trust: str = "auto") -> None:
        self._always = trust == "always"
        self._vouched: tuple[float, float] | None = None
        """Wall time and boot-time clock, in seconds, when a witness agreed."""
        try:
            self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            self.boot_id = "unknown"

    def now(self) -> datetime:
        return datetime.now(UTC)

    def since_boot(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def trusted(self) -> bool:
        return self._always or kernel_synchronised() or _TIMESYNCD.exists() or self._vouch_age() < VOUCH_LASTS

    def wants_witness(self) -> bool:
        return not (self._always or kernel_synchronised() or _TIMESYNCD.exists()) and self._vouch_age() > VOUCH_AGAIN

    def vouch(self) -> None:
        self._vouched = (time.time(), self.since_boot())

    def _vouch_age(self) -> float:
        """Seconds since a witness agreed; infinite where none did, or where the clock was set since."""
        if self._vouched is None:
            return math.inf
        wall, up = self._vouched
        age = self.since_boot() - up
        return age if abs(time.time() - wall - age) < STEP else math.inf

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class RehearsalClock:
    """Time that runs `rate` times as fast from a chosen moment on: a rehearsal of days in seconds.

    `began` is the machine's monotonic clock at that moment, so that several processes can share one time.
    """

    boot_id = "rehearsal"

    def __init__(self, start: datetime, rate: float, began: float | None = None) -> None:
        self.rate = rate
        self._start = start
        self._began = time.monotonic() if began is None else began

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.since_boot())

    def since_boot(self) -> float:
        return (time.monotonic() - self._began) * self.rate

    def trusted(self) -> bool:
        return True

    def wants_witness(self) -> bool:
        return False

    def vouch(self) -> None:
        """It is right by definition."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.rate)


def kernel_synchronised() -> bool:
    """Asks adjtimex(2), read-only. struct timex is 208 bytes on 64-bit Linux; the return value is all we need."""
    try:
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR
