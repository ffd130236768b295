"""Space that is kept from everything else on the card, so that days, claims and seams find room when it is full."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FILE = "reserve"
MOST = 4 * 1024 * 1024
"""Days of closing, delivering and hourly samples of ten meters, and the log of every thinning step."""
SHARE = 8
"""On a tiny file system no more than this part of it."""


class Reserve:
    """A file full of nothing in `data_dir`: there while there is room, given up when the card is full."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._held = False
        self.short = False
        """The reserve is given up, or could never be made: space is short."""

    @property
    def size(self) -> int:
        try:
            found = os.statvfs(self._path.parent)
        except OSError:
            return MOST
        return min(MOST, found.f_blocks * found.f_frsize // SHARE)

    def low(self) -> bool:
        """Whether less is free than two reserves; than four once it was needed, so that it is not made again and again.

        What the log gives back when it is folded, up to 4 MB, must not pass for room.
        """
        try:
            found = os.statvfs(self._path.parent)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < (4 if self.short else 2) * self.size

    def hold(self) -> bool:
        """Makes it where there is room for it and more; False while space is short."""
        if self._held:
            return True
        try:
            self._held = self._path.exists() or (not self.low() and self._made())
        except OSError:
            return not self.short  # a card that cannot be asked is another fault's matter
        self.short = not self._held
        return self._held

    def _made(self) -> bool:
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(handle, 0, self.size)
            finally:
                os.close(handle)
        except OSError:
            with suppress(OSError):
                self._path.unlink()
            raise
        return True

    def give_up(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._held, self.short = False, True
