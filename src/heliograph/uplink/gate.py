"""The one gate that every request to a platform passes just before it leaves, so that no minute holds too many.

The arithmetic stands in `core/delivery.room`; here is the waiting, and the memory that outlives the process.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from pathlib import Path

from heliograph.core import delivery
from heliograph.ports import Clock

# Real seconds: how soon a waiting thread notices that the gate was closed.
STEP = 0.2
EXCHANGE = 30.0
"""Seconds after which a living gateway has given up on an exchange (uplink/http.py)."""


class Gate:
    """Thread-safe. Whoever waits in it holds nothing but what it came with."""

    def __init__(self, per_minute: int, clock: Clock, memory: Path | None = None) -> None:
        """`memory` is a small file by which the next life of the gateway knows what this one sent."""
        self._most = per_minute
        self._clock = clock
        self._memory = memory
        self._lock = threading.Lock()
        self._closed = False
        self._until = self._remembered()
        """Until when (since boot) each request may still share a minute with a new one; infinite while under way."""

    def room(self) -> float:
        """How much of a minute's requests may leave now: from 1, none was made lately, to 0."""
        with self._lock:
            left = delivery.room(self._until, self._clock.since_boot(), self._most)
            return 0.0 if self._closed else left / self._most

    def enter(self) -> bool:
        """Waits until one more request may leave, and counts it; False where nothing leaves any more."""
        while True:
            with self._lock:
                if self._closed:
                    return False
                now = self._clock.since_boot()
                self._until = [until for until in self._until if until > now]
                if delivery.room(self._until, now, self._most):
                    self._until.append(math.inf)
                    self._remember()
                    return True
                ahead = min(self._until) - now
            self._clock.sleep(min(ahead, STEP * self._clock.rate))

    def leave(self, *, sent: bool, answered: bool) -> None:
        """The exchange is over. What was not sent counts for nothing; what got no answer may still be on its way."""
        with self._lock:
            self._until.remove(math.inf)
            if sent:
                now = self._clock.since_boot()
                self._until.append(now + (delivery.MINUTE if answered else delivery.ASTRAY))
            self._remember()

    def close(self) -> None:
        """Nothing more leaves; who waits is told so at once."""
        with self._lock:
            self._closed = True

    def _remembered(self) -> list[float]:
        """What earlier lives sent. Before this boot nothing can have left after its first moment."""
        now = self._clock.since_boot()
        try:
            boot, *told = self._memory.read_text(encoding="ascii").split() if self._memory else ("",)
            known = [float(text) for text in told]
        except FileNotFoundError:
            return []
        except (OSError, ValueError):  # nobody knows: a full minute may have been sent
            return [now + delivery.ASTRAY + EXCHANGE] * self._most
        # An earlier life may have ended in the first moment of an exchange, before it could give up on it.
        latest = (now if boot == self._clock.boot_id else 0.0) + delivery.ASTRAY + EXCHANGE
        return [min(until, latest) for until in known]

    def _remember(self) -> None:
        """Not flushed: the page outlives the process, and after a power cut it is another boot anyway."""
        if self._memory is None:
            return
        text = " ".join([self._clock.boot_id, *(f"{until:.3f}" for until in self._until)])
        with contextlib.suppress(OSError):  # a card that fails stops claims, and with them all sending
            handle = os.open(self._memory, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(handle, text.ljust(64 + 16 * self._most).encode("ascii"), 0)
            finally:
                os.close(handle)
