"""The only place that asks what time it is."""

from __future__ import annotations

import ctypes
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
_TIME_ERROR = 5  # adjtimex(2): the kernel's clock is not synchronized


class SystemClock:
    """The machine's clock; trusted when the kernel or systemd-timesyncd calls it synchronised, or always if told so."""

    rate = 1.0

    def __init__(self, trust: str = "auto") -> None:
        self._always = trust == "always"
        try:
            self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            self.boot_id = "unknown"

    def now(self) -> datetime:
        return datetime.now(UTC)

    def since_boot(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def trusted(self) -> bool:
        return self._always or kernel_synchronised() or _TIMESYNCD.exists()

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

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.rate)


def kernel_synchronised() -> bool:
    """Asks adjtimex(2), read-only. struct timex is 208 bytes on 64-bit Linux; the return value is all we need."""
    try:
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR
