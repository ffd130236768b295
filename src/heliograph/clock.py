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
# adjtimex(2)
_TIME_ERROR = 5  # the kernel's clock is not synchronized
_PLL = 0x0001  # an offset is being worked off
_NANO = 0x2000  # it is in nanoseconds, else in microseconds


class _Timex(ctypes.Structure):
    """The beginning of struct timex, of which no more is needed; 208 bytes on 64-bit Linux."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


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

    def ahead(self) -> float | None:
        return kernel_ahead()

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

    def ahead(self) -> float | None:
        return None

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.rate)


def kernel_synchronised() -> bool:
    found = _adjtimex()
    return found is not None and found[0] < _TIME_ERROR


def kernel_ahead() -> float | None:
    """What is left of the last correction, in seconds that our clock is ahead.

    None where the kernel may not be asked, where its clock is not synchronised, or where somebody steers it who keeps
    the offset to himself (chrony).
    """
    found = _adjtimex()
    if found is None or found[0] >= _TIME_ERROR or not found[1].status & _PLL:
        return None
    offset: int = found[1].offset
    return -offset / (1e9 if found[1].status & _NANO else 1e6)


def _adjtimex() -> tuple[int, _Timex] | None:
    """Asks adjtimex(2), read-only: the state of the kernel's clock, and how it is steered."""
    told = _Timex()
    try:
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(told))
    except (OSError, AttributeError):
        return None
    return (state, told) if state >= 0 else None
