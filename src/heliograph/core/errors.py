"""All failures with a name, told apart by what the reader can do about them.

HeliographError
├── ConfigError      correct the configuration or the map            exit 78
├── UsageError       correct the command                              exit 2
├── BusError         check the wiring, the meter, the settings        exit 69
│   ├── BusUnreachable   the port or host cannot be opened
│   ├── BusTimeout       silence
│   ├── BusGarbled       bytes came, but not the answer to this question
│   ├── BusRefused       the device answered with a Modbus exception
│   └── WrongDevice      something answers, but it is not the meter the site names
├── StoreError       look at the card, the disk, the permissions      exit 75
│   └── StoreFault       the card itself: full, read-only, I/O errors; tried again until it is over
└── UplinkError      call the platform, check token and network       exit 69
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import ClassVar


class HeliographError(Exception):
    """Says what happened and where; `hint` says what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(HeliographError):
    """The configuration or a map cannot be used as it stands; nothing was started or written."""

    exit_code = 78

    def __init__(self, message: str, *, hint: str = "", path: Path | None = None, line: int | None = None) -> None:
        where = "" if path is None else f"{path}:{line}: " if line else f"{path}: "
        super().__init__(where + message, hint=hint)
        self.path = path
        self.line = line


class UsageError(HeliographError):
    exit_code = 2


class BusError(HeliographError):
    """No trustworthy answer was had; the reading is absent, never zero."""

    exit_code = 69


class BusUnreachable(BusError):
    pass


class BusTimeout(BusError):
    pass


class BusGarbled(BusError):
    """Noise, another unit's or another question's answer, a wrong length, or bytes too early to be ours."""


class BusRefused(BusError):
    """A Modbus exception answer; `code` as in the Modbus application protocol 1.1b3, section 7."""

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class WrongDevice(BusError):
    """Something answers, but it is not the meter the site names."""


class StoreError(HeliographError):
    exit_code = 75


class StoreFault(StoreError):
    """Nothing more is written until the store has been reopened and checked; what was stored before stays stored."""


class UplinkError(HeliographError):
    """A platform cannot be used now; `wait` is the least delay before trying again is of any use.

    `busy`: it said that it is asked too often.
    """

    exit_code = 69

    def __init__(self, message: str, *, hint: str = "", wait: timedelta | None = None, busy: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.wait = wait
        self.busy = busy
